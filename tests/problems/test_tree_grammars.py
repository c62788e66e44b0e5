"""What a teacher may write: trees within bounds that no tree of CRAFT exceeds."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from retort.config import ColumnsConfig, ConstituencyConfig
from retort.problems import Constraint, infer_schema, problem_for
from retort.problems.constituency import Constituency
from retort.problems.tree_grammars import MOST_OPEN, MOST_OPENINGS
from retort.records.base import ParseFailure

CRAFT = Path(__file__).parents[2] / "examples" / "craft"
COLUMNS = ColumnsConfig(label="tree")
TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP", "NPX", "VP"]))
BARE_TREES = Constituency(ConstituencyConfig(kind="constituency", form="unlabelled"))
TEXTS = ["The cat ( sat ) .", 'say "no" \\ no', "é a an ant", "film"]
BYTES = LLTokenizer("byte")


def constraint(problem: Constituency, text: str) -> Constraint:
    found = problem.constraint(text)
    assert found is not None
    return found


def matcher(problem: Constituency, text: str) -> LLMatcher:
    found = LLMatcher(BYTES, constraint(problem, text).lark, log_level=0)
    assert not found.is_error(), found.get_error()
    return found


def accepts(problem: Constituency, text: str, completion: str) -> bool:
    state, wanted = matcher(problem, text), list(completion.encode())
    return state.try_consume_tokens(wanted) == len(wanted) and state.is_accepting()


def as_regex(gbnf: str) -> str:
    """Of the only form of GBNF that trees need."""
    root, opening = (
        "".join(f"(?:{re.escape(json.loads(token))})" if token[0] == '"' else token for token in tokens)
        for tokens in (
            re.findall(r'"(?:[^"\\]|\\.)*"|\{[\d,]+\}|\w+|[()|*]', line.split(" ::= ", 1)[1])
            for line in gbnf.splitlines()
        )
    )
    return root.replace("open", f"(?:{opening})")


def test_every_craft_tree_is_within_the_bounds() -> None:
    with gzip.open(CRAFT / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    # The deepest trees, and some others.
    rows = sorted(rows, key=lambda row: -max(np.cumsum([(c == "(") - (c == ")") for c in row["tree"]])))
    rows = [*rows[:20], *rows[20::400]]
    labeled = problem_for(infer_schema(ConstituencyConfig(kind="constituency"), rows, COLUMNS))
    for problem in (labeled, BARE_TREES):
        assert isinstance(problem, Constituency)
        for row in rows:
            label = problem.gold(row, COLUMNS)
            assert label is not None
            rendering = problem.render(row["text"], label)
            assert accepts(problem, row["text"], rendering)
            assert re.fullmatch(as_regex(constraint(problem, row["text"]).grammar or ""), rendering)


@pytest.mark.parametrize("problem", [TREES, BARE_TREES])
@pytest.mark.parametrize("text", TEXTS)
def test_whatever_is_written_ends_as_a_tree(problem: Constituency, text: str) -> None:
    """A walk that opens whenever it may, and random ones."""
    for seed in range(6):
        generator, written, state = np.random.default_rng(seed), bytearray(), matcher(problem, text)
        bits = allocate_token_bitmask(1, BYTES.vocab_size)
        while not state.is_accepting() and len(written) < 4000:
            fill_next_token_bitmask(state, bits, 0)
            allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            opens = [token for token in allowed if token == ord("(")]
            token = int(opens[0] if opens and seed == 0 else generator.choice(allowed))
            written.append(token)
            assert state.try_consume_tokens([token]) == 1
        assert state.is_accepting()
        assert not isinstance(problem.parse(text, written.decode()), ParseFailure), written


def test_the_bounds() -> None:
    text = " ".join("abcdefgh")
    for num_openings, is_legal in ((MOST_OPENINGS, True), (MOST_OPENINGS + 1, False)):
        tree = "(NP " * num_openings + text + ")" * num_openings
        assert accepts(TREES, text, tree) == is_legal
        gbnf = constraint(TREES, text).grammar or ""
        assert bool(re.fullmatch(as_regex(gbnf), tree)) == is_legal
    for depth, is_legal in ((MOST_OPEN, True), (MOST_OPEN + 1, False)):
        openings = [min(MOST_OPENINGS, max(0, depth - place * MOST_OPENINGS)) for place in range(8)]
        tree = " ".join("(NP " * many + word for many, word in zip(openings, text.split(), strict=True)) + ")" * depth
        assert accepts(TREES, text, tree) == is_legal
    assert not accepts(TREES, text, "(NP a) b c d e f g h")


def test_a_text_without_words_has_no_constraint() -> None:
    assert TREES.constraint(" ") is None
    assert TREES.grammar(" ") is None
