"""Brackets of trees that are put right: what a model meant, and how much of the sentence it had written."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import ColumnsConfig, ConstituencyConfig
from retort.problems.base import Mended
from retort.problems.constituency import Constituency
from retort.problems.trees import decode_label
from retort.records.base import Label, ParseFailure
from retort.teachers.salvage import parse_completion

COLUMNS = ColumnsConfig()
TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP", "VP", "PP"], tags=False))
BARE_TREES = Constituency(ConstituencyConfig(kind="constituency", form="unlabelled", tags=False))
TEXT = "The cat sat on the mat ."
WHOLE = "(S (NP The cat) (VP sat (PP on (NP the mat))) .)"
UNLABELED = "( ( ( The ) ( cat ) ) ( ( sat ) ( ( on ) ( ( the ) ( mat ) ) ) ) ( . ) )"


def mended(completion: str, problem: Constituency = TREES, text: str = TEXT) -> tuple[Label | ParseFailure, float]:
    repaired, covered = problem.mend(text, completion)
    return problem.parse(text, repaired), covered


@pytest.mark.parametrize(
    "completion",
    [
        WHOLE,
        WHOLE[:-1],
        f"{WHOLE} ) )",
        "(S (NP The cat)) (VP sat (PP on (NP the mat))) .)",
        "(S (NP The cat)))) (VP sat (PP on (NP the mat))) .))",
        "(S (NP) (NP The cat) ( ) (VP sat (PP on (NP the mat))) (VP (NP )) .)",
        f"{WHOLE} (S (NP The",
        "(S(NP The cat)(VP sat(PP on(NP the mat))).",
    ],
)
def test_brackets_are_put_right(completion: str) -> None:
    assert mended(completion) == (WHOLE, 1.0)


@pytest.mark.parametrize(
    "completion", [UNLABELED, UNLABELED[:-2], UNLABELED.replace("cat ) )", "cat ) ) )"), f"{UNLABELED} )"]
)
def test_unlabeled_brackets_are_put_right(completion: str) -> None:
    assert mended(completion, BARE_TREES) == (BARE_TREES.parse(TEXT, UNLABELED), 1.0)


@pytest.mark.parametrize(
    ("completion", "label", "num_words"),
    [
        ("(S (NP The cat) (VP sat", "(S (NP The cat) (VP sat) on the mat .)", 3),
        ("(S (NP The cat) (VP sat (PP on (NP th", "(S (NP The cat) (VP sat (PP on)) the mat .)", 4),
        ("(S (NP (NP (NP (NP (NP (NP The", "(S (NP (NP (NP (NP (NP (NP The)))))) cat sat on the mat .)", 1),
        ("(S (NP (NP (NP (NP (N", "(S The cat sat on the mat .)", 0),
        ("(S (NP The cat))", "(S (NP The cat) sat on the mat .)", 2),
    ],
)
def test_words_that_were_not_reached_are_the_roots(completion: str, label: Label, num_words: int) -> None:
    assert mended(completion) == (label, num_words / 7)
    assert parse_completion(TREES, TEXT, completion, "length") == (label, True, num_words / 7)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "The cat",
        WHOLE.replace("cat", "dog"),
        WHOLE.replace("sat", "sat sat"),
        WHOLE.replace(" .)", " . .)"),
        "S (NP The cat) (VP sat (PP on (NP the mat))) .)",
        "(S (NP The ca) (VP sat",
        ") ) )",
    ],
)
def test_what_would_be_guessed_is_left_as_it_is(completion: str) -> None:
    assert TREES.mend(TEXT, completion) == Mended(completion)


def test_an_empty_text_has_no_tree() -> None:
    for completion in ("", "(S )", "(S", "a"):
        assert isinstance(mended(completion, text="")[0], ParseFailure)


@pytest.mark.parametrize(
    "completion", [f"```\n{WHOLE}\n```", f"Tree:\n{WHOLE}", f"Tree: {WHOLE[:-1]}", f"Here is the tree:\n\n{WHOLE[:-1]}"]
)
def test_trees_are_found_in_other_text(completion: str) -> None:
    assert parse_completion(TREES, TEXT, completion) == (WHOLE, True, 1.0)


def test_the_part_of_a_completion_that_says_most_is_taken() -> None:
    completion = "(S (NP The cat)\n(VP sat (PP on"
    assert parse_completion(TREES, TEXT, completion) == ("(S (NP The cat) (VP sat (PP on)) the mat .)", True, 4 / 7)


def test_a_bracket_that_is_missing_inside_is_not_guessed() -> None:
    reading = parse_completion(TREES, TEXT, "S (NP The cat) (VP sat (PP on (NP the mat))) .)")
    assert isinstance(reading.outcome, ParseFailure)
    assert not reading.is_salvaged


@given(st.text(alphabet="()SNP ab", max_size=30))
def test_parse_and_mend_never_raise(completion: str) -> None:
    for problem in (TREES, BARE_TREES):
        for finish_reason in (None, "length"):
            parse_completion(problem, "a b", completion, finish_reason)


def nested(words: list[str], generator: random.Random, label: str = "S") -> str:
    """A random tree over the words."""
    parts, at = [], 0
    while at < len(words):
        end = generator.randint(at + 1, len(words))
        is_leaf = end - at == 1 or (at, end) == (0, len(words))
        parts.append(
            " ".join(words[at:end]) if is_leaf else nested(words[at:end], generator, generator.choice("NVP") + "P")
        )
        at = end
    return f"({label} {' '.join(parts)})"


@given(st.data(), st.sampled_from([TREES, BARE_TREES]))
def test_any_beginning_of_a_tree_gives_a_label_with_all_words(data: Any, problem: Constituency) -> None:
    """With closing brackets put in and left out anywhere."""
    words = data.draw(st.lists(st.sampled_from(["a", "an", "ant", "-LRB-", "."]), min_size=2, max_size=12))
    text = " ".join(words)
    tree = nested(words, random.Random(data.draw(st.integers(0, 2**32))))
    label = problem.gold({"text": text, "label": tree}, COLUMNS)
    rendered = problem.render(text, label or "")
    first = rendered.index(words[0]) + len(words[0])
    kept = rendered[: data.draw(st.integers(first, len(rendered)))]
    changed = [
        "".join(data.draw(st.sampled_from([[")"], [], [")", " )"]])))
        if character == ")" and place > first
        else character
        for place, character in enumerate(kept)
    ]
    found, covered = mended("".join(changed), problem, text)
    assert not isinstance(found, ParseFailure), found
    assert decode_label(found).words == tuple(words)
    assert 0 < covered <= 1
    assert covered == 1 or kept != rendered
