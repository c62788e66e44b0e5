"""Trees as text and as decisions, both lossless on CRAFT; brackets counted as evalb and the paper's code count them."""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import ColumnsConfig, ConstituencyConfig, TokenClassificationConfig, TrainingConfig
from retort.errors import ConfigError, DataError
from retort.problems import infer_schema, problem_for
from retort.problems.brackets import bracket_counts, unlabeled_f1
from retort.problems.constituency import Constituency
from retort.problems.trees import (
    Span,
    Tree,
    collapsed,
    decode_label,
    encode_label,
    nodes_of,
    read_tree,
    tree_of,
    unlabeled,
    write_tree,
)
from retort.records.base import Label, ParseFailure
from retort.report.mistakes import error_tables

CRAFT = Path(__file__).parents[2] / "examples" / "craft"
COLUMNS = ColumnsConfig(label="tree")
CONFIG = ConstituencyConfig(kind="constituency", labels=["S", "NP", "VP", "PP", "ADVP", "PRT", "S+VP"])
PROBLEM = Constituency(CONFIG)
TEXT = "The cat sat on the mat ."
TREE = "(S (NP (DT The) (NN cat)) (VP (VBD sat) (PP (IN on) (NP (DT the) (NN mat)))) (. .))"
BARE = "(S (NP The cat) (VP sat (PP on (NP the mat))) .)"
UNLABELED = "( ( ( The ) ( cat ) ) ( ( sat ) ( ( on ) ( ( the ) ( mat ) ) ) ) ( . ) )"  # PAPERS: the paper's example

Nested = list[Any]


def gold(text: str, tree: str, problem: Any = PROBLEM) -> Label:
    label = problem.gold({"text": text, "tree": tree}, COLUMNS)
    assert label is not None
    return str(label)


def shipped(role: str) -> list[dict[str, Any]]:
    with gzip.open(CRAFT / f"{role}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def craft() -> tuple[Any, list[dict[str, str]], list[Label]]:
    """Every tenth tree of train, dev and test with the problem whose schema they show, and their labels."""
    rows = [row for role in ("train", "dev", "test") for row in shipped(role)][::10]
    problem = problem_for(infer_schema(ConstituencyConfig(kind="constituency"), rows, COLUMNS))
    return problem, rows, [gold(row["text"], row["tree"], problem) for row in rows]


def test_both_forms_of_a_tree() -> None:
    label = gold(TEXT, TREE)
    assert label == f"{BARE}\tDT NN VBD IN DT NN ."
    assert PROBLEM.render(TEXT, label) == BARE
    assert PROBLEM.parse(TEXT, BARE) == BARE
    assert PROBLEM.matches(label, BARE)
    paper = Constituency(ConstituencyConfig(kind="constituency", form="unlabelled"))
    assert paper.render(TEXT, gold(TEXT, TREE, paper)) == UNLABELED
    assert paper.parse(TEXT, UNLABELED) == gold(TEXT, TREE, paper).partition("\t")[0]


def test_every_craft_tree_survives_text_and_decisions(craft: tuple[Any, list[dict[str, str]], list[Label]]) -> None:
    problem, rows, labels = craft
    one_hot = np.eye(len(problem.classes))
    paper = Constituency(ConstituencyConfig(kind="constituency", form="unlabelled"))
    for row, label in zip(rows, labels, strict=True):
        bare, text = label.partition("\t")[0], row["text"]
        targets = problem.targets(text, label)
        assert len(targets) == len(problem.sites(len(text.split())))
        assert problem.allowed(len(targets))[np.arange(len(targets)), targets].all()
        assert problem.decide(text, one_hot[targets]) == (bare, pytest.approx(1.0))
        assert problem.parse(text, problem.render(text, label)) == bare
        brackets = gold(text, row["tree"], paper)
        assert paper.parse(text, paper.render(text, brackets)) == brackets.partition("\t")[0]


def test_a_tree_read_here_is_the_tree_that_nltk_reads(craft: tuple[Any, list[dict[str, str]], list[Label]]) -> None:
    nltk = pytest.importorskip("nltk")
    _, rows, labels = craft
    for row, label in zip(rows[::20], labels[::20], strict=True):
        tree = nltk.Tree.fromstring(row["tree"])
        ours = decode_label(label)
        assert list(zip(ours.words, ours.tags or (), strict=True)) == tree.pos()
        theirs = [
            (node.label(), *node_span(tree, place)) for place in tree.treepositions() if is_phrase(node := tree[place])
        ]
        assert sorted(theirs) == sorted(ours.spans)


def is_phrase(node: Any) -> bool:
    return not isinstance(node, str) and not isinstance(node[0], str)


def node_span(tree: Any, place: tuple[int, ...]) -> tuple[int, int]:
    start = sum(leaf < place and leaf[: len(place)] != place for leaf in tree.treepositions("leaves"))
    return start, start + len(tree[place].leaves())


@given(st.lists(st.integers(-9, 9), max_size=20), st.integers(0, 2**32))
def test_any_decisions_give_a_tree(changes: list[int], seed: int) -> None:
    words = len(changes) + 1
    text = " ".join(f"w{number}" for number in range(words))
    scores = np.random.default_rng(seed).random((3 * words - 2, len(PROBLEM.classes)))
    for place, change in enumerate(changes):
        scores[words + place, PROBLEM.classes.index(f"deeper:{change}")] = 2.0
    label, confidence = PROBLEM.decide(text, scores)
    assert 0 < confidence <= 1
    tree = decode_label(label)
    assert list(tree.words) == text.split()
    assert all(one.end <= two.start or two.end <= one.end for one, two in pairs(tree.spans)), "no two cross"
    assert PROBLEM.parse(text, label) == label
    again, _ = PROBLEM.decide(text, np.eye(len(PROBLEM.classes))[PROBLEM.targets(text, label)])
    assert again == label or any(name.count("+") for name in chains(tree)), "a longer chain is shortened"


def pairs(spans: tuple[Span, ...]) -> Iterator[tuple[Span, Span]]:
    return ((one, two) for at, one in enumerate(spans) for two in spans[at + 1 :])


def chains(tree: Tree) -> list[str]:
    return [span.label for span in collapsed(tree.spans) if span.label not in ("S+VP",)]


@given(st.lists(st.integers(-3, 5), min_size=1, max_size=12))
def test_nodes_of_are_the_runs_of_deep_gaps(depths: list[int]) -> None:
    """Brute force: for each level that occurs, the longest runs of gaps that are as deep, if one of them is just so."""
    wanted = set()
    for level in set(depths):
        start = None
        for gap, depth in enumerate([*depths, -99]):
            if depth >= level and start is None:
                start = gap
            if depth < level and start is not None:
                if level in depths[start:gap]:
                    wanted.add((start, gap + 1))
                start = None
    found = nodes_of(depths)
    assert {(node.start, node.end) for node in found} == wanted
    assert sorted(gap for node in found for gap in node.gaps) == list(range(len(depths)))


def test_a_gap_takes_the_label_that_is_most_probable_over_the_whole_constituent() -> None:
    text, classes = "a b c", list(PROBLEM.classes)
    scores = np.zeros((7, len(classes)))
    scores[:3, classes.index("word:")] = 1
    scores[[3, 4], [classes.index("deeper:1"), classes.index("deeper:0")]] = 1
    scores[5, [classes.index("gap:NP"), classes.index("gap:VP")]] = 0.6, 0.4
    scores[6, [classes.index("gap:NP"), classes.index("gap:VP")]] = 0.2, 0.8
    label, confidence = PROBLEM.decide(text, scores)
    assert label == "(VP a b c)"
    assert confidence == pytest.approx((0.4 * 0.8) ** (1 / 7))


# --- metrics, against counting on nested lists


def nested(text: str) -> Nested:
    """`["S", ["NP", ...], ...]`, leaves `["DT", "The"]`."""
    stack: list[Nested] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0][0]


def brute_evalb(gold_tree: str, predicted_tree: str) -> tuple[int, int, int]:
    """evalb by its rules: words with a deleted tag go first, empty constituents with them; then one match at a time."""
    sides = [brute_brackets(nested(tree), [0])[1] for tree in (gold_tree, predicted_tree)]
    left, matched = list(sides[1]), 0
    for bracket in sides[0]:
        if bracket in left:
            left.remove(bracket)
            matched += 1
    return matched, len(sides[0]), len(sides[1])


def brute_brackets(node: Nested, place: list[int]) -> tuple[int, list[tuple[str, int, int]]]:
    if len(node) == 2 and isinstance(node[1], str):
        kept = node[0] not in (",", ":", "``", "''", ".")
        place[0] += kept
        return kept, []
    start, found, size = place[0], [], 0
    for child in node[1:]:
        width, brackets = brute_brackets(child, place)
        size += width
        found += brackets
    label = {"PRT": "ADVP"}.get(node[0], node[0])
    if size and label != "TOP":
        found.append((label, start, start + size))
    return size, found


@pytest.mark.parametrize(
    ("name", "gold_tree", "predicted_tree", "counts"),
    [
        ("all right", "(S (NP (D a)) (VP (V b)))", "(S (NP (D a)) (VP (V b)))", (3, 3, 3)),
        ("punctuation moved", "(S (NP (D a)) (VP (V b)) (. .))", "(S (NP (D a)) (VP (V b) (. .)))", (3, 3, 3)),
        ("only punctuation", "(S (NP (D a)) (X (: -)))", "(S (NP (D a)) (: -))", (2, 2, 2)),
        ("a chain twice", "(NP (NP (D a) (N b)))", "(NP (D a) (N b))", (1, 2, 1)),
        ("twice in both", "(NP (NP (D a) (N b)))", "(NP (NP (NP (D a) (N b))))", (2, 2, 3)),
        ("one word", "(S (NP (N a)))", "(NP (N a))", (1, 2, 1)),
        ("order in a chain", "(S (VP (V a) (N b)))", "(VP (S (V a) (N b)))", (2, 2, 2)),
        ("particle as adverb", "(VP (V a) (PRT (RP b)))", "(VP (V a) (ADVP (RP b)))", (2, 2, 2)),
        ("a word for itself", "(S (NP (D a) (N b)) (V c))", "(S (D a) (VP (N b) (V c)))", (1, 2, 2)),
        (
            "brackets are words",
            "(NP (NN a) (PRN (-LRB- -LRB-) (NN b) (-RRB- -RRB-)))",
            "(NP (NN a) (NN -LRB-) (NN b) (NN -RRB-))",
            (1, 2, 1),
        ),
    ],
)
def test_brackets_are_counted_as_evalb_counts(
    name: str, gold_tree: str, predicted_tree: str, counts: tuple[int, int, int]
) -> None:
    one, two = (read_tree(tree, is_tag=lambda label: True) for tree in (gold_tree, predicted_tree))
    assert tuple(bracket_counts(one, two)) == counts
    if "brackets" not in name:
        assert brute_evalb(gold_tree, predicted_tree) == counts


def test_noisy_craft_trees_are_counted_as_by_brute_force(craft: tuple[Any, list[dict[str, str]], list[Label]]) -> None:
    problem, rows, labels = craft
    generator = np.random.default_rng(0)
    sums = np.zeros(3)
    for row, label in list(zip(rows, labels, strict=True))[::8]:
        one_hot = np.eye(len(problem.classes))[problem.targets(row["text"], label)]
        noisy, _ = problem.decide(row["text"], one_hot * 5 + generator.gumbel(size=one_hot.shape))
        predicted = decode_label(noisy)
        tags = decode_label(label).tags or ()
        tagged = Tree(tuple(f"({t} {w})" for t, w in zip(tags, predicted.words, strict=True)), predicted.spans)
        counts = problem.statistics("bracket_f1", label, noisy)
        assert tuple(counts) == brute_evalb(row["tree"], write_tree(tagged))
        assert problem.statistics("unlabeled_f1", label, noisy)[0] == pytest.approx(
            brute_paper(nested(row["tree"]), nested(write_tree(tagged)))
        )
        sums += counts
    common, wanted, found = sums
    assert 0.1 < common / wanted < 0.95
    assert problem.value("bracket_precision", sums) == common / found
    assert problem.value("bracket_recall", sums) == common / wanted
    assert problem.value("bracket_f1", sums) == pytest.approx(2 * common / (wanted + found))


WORD_TAGS = {
    *("CC", "CD", "DT", "EX", "FW", "IN", "JJ", "JJR", "JJS", "LS", "MD", "NN", "NNS", "NNP", "NNPS", "PDT", "POS"),
    *("PRP", "PRP$", "RB", "RBR", "RBS", "RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT"),
    *("WP", "WP$", "WRB"),
}


def brute_paper(gold_tree: Nested, predicted_tree: Nested) -> float:
    sets = []
    for tree in (gold_tree, predicted_tree):
        spans: set[tuple[int, int]] = set()
        paper_spans(tree, 0, spans)
        sets.append(spans)
    common = len(sets[0] & sets[1])
    if not common:
        return 0.0
    precision, recall = common / len(sets[1]), common / len(sets[0])
    return 2 * precision * recall / (precision + recall)


def paper_spans(node: Nested, at: int, spans: set[tuple[int, int]]) -> int:
    """Size in words; adds (start, size) of what has two and more."""
    if isinstance(node[1], str):
        return int(node[0] in WORD_TAGS)
    size = 0
    for child in node[1:]:
        size += paper_spans(child, at + size, spans)
    if size > 1:
        spans.add((at, size))
    return size


def test_right_branching_scores_what_the_data_says() -> None:
    """38.45 over dev's trees of three and more words, counted by others on the same trees."""
    scores = []
    for row in shipped("dev"):
        tree = read_tree(row["tree"], is_tag=lambda label: True)
        words = len(tree.words)
        if sum(tag in WORD_TAGS for tag in tree.tags or ()) >= 3:
            right = Tree(tree.words, tuple(Span("X", start, words) for start in range(words - 1)))
            scores.append(unlabeled_f1(tree, right))
    assert len(scores) == 2599
    assert np.mean(scores) * 100 == pytest.approx(38.45, abs=0.005)


def test_a_row_without_a_prediction_misses_everything() -> None:
    label = gold(TEXT, TREE)
    assert tuple(PROBLEM.statistics("bracket_f1", label, None)) == (0, 5, 0)
    assert tuple(PROBLEM.statistics("unlabeled_f1", label, None)) == (0, 1)
    assert tuple(PROBLEM.statistics("exact_match", label, None)) == (0, 1)
    assert PROBLEM.value("bracket_f1", np.zeros((2, 3))) == pytest.approx([1, 1])


def test_without_tags_words_tell_what_is_punctuation() -> None:
    one, two = decode_label("(S (NP a) (VP b .))"), decode_label("(S (NP a) (VP b) .)")
    assert tuple(bracket_counts(one, two)) == (3, 3, 3)
    assert unlabeled_f1(one, two) == 1.0


# --- data and completions that are wrong


@pytest.mark.parametrize(
    ("text", "tree", "sentence"),
    [
        ("a b", "(S (D a) (N b)", "is no tree: 1 bracket(s) are not closed"),
        ("a b", "(S (D a) (N b)))", "is no tree: a bracket is closed that was not opened"),
        ("a b", "(S (NP ) (N b))", "is no tree: the bracket 'NP' holds no word"),
        ("a b", "()", "is no tree: the bracket '' holds no word"),
        ("a b", "(S (D a)) (N b)", "is no tree: '(' follows the tree"),
        ("a b", "(D a) (N b)", "is no tree: no bracket holds all words, from 'a' on"),
        ("a b", "(S (D a) (N c))", "the tree is not that of the text: word 2 is 'c' and in the text 'b'"),
        ("a b", "(S (D a) (N b) (. .))", "the tree is not that of the text: it has 3 words and the text 2"),
        ("a b", "(S a (N b))", "has words without a part-of-speech tag"),
        (
            "a b",
            "(QP (D a) (N b))",
            "the tree's label 'QP' is not in problem.labels; allowed: ADVP, NP, PP, PRT, S, VP",
        ),
    ],
)
def test_a_wrong_tree_is_refused_in_a_sentence(text: str, tree: str, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        PROBLEM.gold({"text": text, "tree": tree}, COLUMNS)


@pytest.mark.parametrize("tree", ["( (S (NP-SBJ-1 (D a)) (VP=2 (N b))) )", "(TOP (S (NP (D a)) (VP (N b))))"])
def test_function_tags_and_outer_brackets_are_left_out(tree: str) -> None:
    assert gold("a b", tree) == "(S (NP a) (VP b))\tD N"


@pytest.mark.parametrize(
    "tree",
    [
        "( ( ( (S (NP (D a)) (VP (N b))) ) ) )",
        "( (TOP (ROOT (S1 (S (NP (D a)) (VP (N b)))))) )",
        "(S (NP-SBJ-1 (D a)) (VP (N b) (S (NP-SBJ (-NONE- *-1)) (VP (-NONE- *?*)))))",
        "(S (NP (D a) (SBAR (WHNP-2 (-NONE- 0)) (-NONE- *T*-2))) (VP=3 (N b) (-NONE- *)) (-NONE- *T*-1))",
        "( (S\n  (NP-SBJ (D a))\r\n  (VP\n\t(N b))))\n",
    ],
)
def test_wrappers_and_what_the_sentence_does_not_say_are_left_out(tree: str) -> None:
    assert gold("a b", tree) == "(S (NP a) (VP b))\tD N"
    assert PROBLEM.parse("a b", tree) == "(S (NP a) (VP b))", "a teacher that knows the treebank may write them too"


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ("(S (NP (D a)) ((N b)))", "the bracket around 'b' has no label"),
        ("(S ((D a) (N b)))", "the bracket around 'a b' has no label"),
        ("(S (D a) ( b))", "the bracket 'b' holds no word"),
        ("( (-NONE- *) )", "there is no word"),
        ("(S (-NONE- *) (NP ))", "the bracket 'NP' holds no word"),
    ],
)
def test_a_bracket_in_mid_sentence_needs_a_label(tree: str, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        gold("a b", tree)


def test_an_outermost_bracket_that_is_needed_is_kept() -> None:
    config = ConstituencyConfig(kind="constituency", tags=False)
    rows = [{"text": "a b", "tree": "( (NP a) (VP b) )"}]
    assert infer_schema(config, rows, COLUMNS) == config.model_copy(update={"labels": ["NP", "TOP", "VP"]})
    assert gold("a", "(TOP (ROOT (D a)))") == "a\tD"


def test_function_tags_are_kept_if_asked_for() -> None:
    config = ConstituencyConfig(kind="constituency", function_tags=True)
    row = {"text": "a $ ( b", "tree": "(S-2 (NP-SBJ=1 (PRP$ a) ($ $)) (-LRB- -LRB-) (NP-TMP-CLR-3 (N b)))"}
    config = infer_schema(config, [row], COLUMNS)  # type: ignore[assignment]
    assert config.labels == ["NP-SBJ", "NP-TMP-CLR", "S"]
    problem = problem_for(config)
    label = problem.gold(row, COLUMNS)
    assert label == "(S (NP-SBJ a $) -LRB- (NP-TMP-CLR b))\tPRP$ $ -LRB- N"
    assert problem.parse(row["text"], problem.render(row["text"], label)) == label.partition("\t")[0]
    assert problem.parts(label) == ["S", "S:1-4", "NP-SBJ:1-2", "NP-TMP-CLR:4-4"]
    assert "function_tags" not in ConstituencyConfig(kind="constituency").model_dump(), "keys of runs stay"


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u3000", "\u2028", "\u0085", "\x1c"])
def test_a_word_may_hold_what_looks_like_a_space(space: str) -> None:
    text, tree = f"a 10{space}000", f"(S (NP (D a)) (VP (N 10{space}000)))"
    label = gold(text, tree)
    assert label == f"(S (NP a) (VP 10{space}000))\tD N"
    assert PROBLEM.parse(text, PROBLEM.render(text, label)) == label.partition("\t")[0]
    assert PROBLEM.mend(text, f"(S (NP a (VP 10{space}000").covered == 1.0
    assert len(PROBLEM.targets(text, label)) == 4


def test_round_brackets_in_a_text_are_escaped_and_read_as_they_are() -> None:
    tree = "(NP (NN f-LRB-x-RRB-) (NN y))"
    assert gold("f(x) y", tree) == gold("f-LRB-x-RRB- y", tree) == "(NP f-LRB-x-RRB- y)\tNN NN"
    assert PROBLEM.words("f-LRB-x-RRB- y") == ["f(x)", "y"]


def test_trees_without_tags() -> None:
    problem = Constituency(CONFIG.model_copy(update={"tags": False}))
    assert gold("it works", "(S (NP it) (VP works))", problem) == "(S (NP it) (VP works))"
    assert infer_schema(
        ConstituencyConfig(kind="constituency", tags=False), [{"tree": "(S (NP it) (VP works))"}], COLUMNS
    ) == ConstituencyConfig(kind="constituency", tags=False, labels=["NP", "S", "VP"])


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (" \n", "empty"),
        ("(S (NP The cat) (VP sat (PP on (NP the mat))) .", "unbalanced-brackets"),
        (f"{BARE})", "unbalanced-brackets"),
        ("(S (NP The cat) (VP sat (PP on (NP the mat))) ()", "empty-bracket"),
        ("The cat sat on the mat .", "no-tree"),
        (f"{BARE} as asked", "text-after-tree"),
        (BARE.replace("cat", "dog"), "words-differ"),
        (BARE.replace("VP", "QP"), "unknown-label"),
    ],
)
def test_each_failure_has_its_reason_and_keeps_the_raw_text(completion: str, reason: str) -> None:
    failure = PROBLEM.parse(TEXT, completion)
    assert isinstance(failure, ParseFailure)
    assert (failure.reason, failure.raw) == (reason, completion)
    assert failure.detail.endswith(".")


def test_tags_that_a_teacher_writes_are_left_out() -> None:
    assert PROBLEM.parse(TEXT, TREE) == BARE


def test_the_grammar_derives_the_trees_and_keeps_the_words() -> None:
    for form, rendering in (("labelled", BARE), ("unlabelled", UNLABELED)):
        problem = Constituency(CONFIG.model_copy(update={"form": form}))
        grammar = problem.constraint(TEXT).grammar or ""
        root, opening = (line.split(" ::= ", 1)[1] for line in grammar.splitlines())
        pattern = as_regex(root).replace("open", f"(?:{as_regex(opening)})")
        assert re.fullmatch(pattern, rendering)
        assert not re.fullmatch(pattern, rendering.replace("cat", "dog"))


def as_regex(body: str) -> str:
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|\{[\d,]+\}|\w+|[()|*?]', body)
    return "".join(f"(?:{re.escape(json.loads(token))})" if token[0] == '"' else token for token in tokens)


# --- the schema


def test_the_schema_is_read_off_the_labeled_rows() -> None:
    rows = [{"tree": "(S (VP (V a) (NP (N b))))"}, {"tree": ""}, {"tree": "(NP (NP (N a)))"}]
    config = infer_schema(ConstituencyConfig(kind="constituency"), rows, COLUMNS)
    assert isinstance(config, ConstituencyConfig)
    assert config.labels == ["NP", "NP+NP", "S", "S+VP", "VP"]
    assert infer_schema(config, [], COLUMNS) is config
    with pytest.raises(DataError, match=r"labeled row 2: .* is no tree"):
        infer_schema(ConstituencyConfig(kind="constituency"), [{"tree": "(S (V a))"}, {"tree": "(S"}], COLUMNS)
    with pytest.raises(DataError, match="no labeled row has a tree in the field 'tree'"):
        infer_schema(ConstituencyConfig(kind="constituency"), [{}], COLUMNS)


def test_a_chain_that_is_no_class_keeps_its_lower_end() -> None:
    label = gold("a b", "(NP (S (VP (V a) (N b))))")
    classes = [PROBLEM.classes[target] for target in PROBLEM.targets("a b", label)]
    assert classes == ["word:", "word:", "deeper:1", "gap:S+VP"]


def test_a_change_of_depth_that_is_cut_is_made_up_for() -> None:
    problem = Constituency(CONFIG.model_copy(update={"max_change": 2}))
    text = "a b c d e f g"
    label = gold(text, "(S (D a) (S (D b) (S (D c) (S (D d) (D e)))) (D f) (D g))")  # depths 1 2 3 4 1 1: falls by 3
    changes = [problem.classes[target] for target in problem.targets(text, label)[7:13]]
    assert changes == [f"deeper:{change}" for change in (1, 1, 1, 1, -2, -1)]


@pytest.mark.parametrize("labels", [["NP", "S+"], ["N P"], ["(NP"]])
def test_names_that_are_no_labels_are_refused(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"problem\.labels: '.*' is no phrase label; allowed: NP, or a unary chain"):
        Constituency(CONFIG.model_copy(update={"labels": labels}))


def test_the_examples_schema_knows_every_label_and_most_chains(
    craft: tuple[Any, list[dict[str, str]], list[Label]],
) -> None:
    """What the shipped schema cannot say costs less than a point of bracket F1."""
    from retort.recipes import load_config

    problem = problem_for(load_config(CRAFT.with_suffix(".yaml")).problem)
    _, rows, labels = craft
    one_hot, sums = np.eye(len(problem.classes)), np.zeros(3)
    for row, label in zip(rows[::2], labels[::2], strict=True):
        assert gold(row["text"], row["tree"], problem) == label
        best, _ = problem.decide(row["text"], one_hot[problem.targets(row["text"], label)])
        sums += problem.statistics("bracket_f1", label, best)
    assert problem.value("bracket_f1", sums) > 0.99


# --- a student, and its report


def test_a_tagging_student_learns_to_parse(tiny_encoder: Path) -> None:
    import torch

    from retort.models.device import Device
    from retort.models.weights import find_weights
    from retort.students.classifier import predict
    from retort.students.encoder import encode_all, new_encoder
    from retort.students.training import TrainingRows, train

    generator = random.Random(0)
    texts, labels = zip(*(sentence(generator) for _ in range(60)), strict=True)
    training = TrainingConfig(
        epochs=40, learning_rate=5e-3, batch_tokens=256, freeze_embeddings=False, precision="fp32"
    )
    weights = find_weights(TokenClassificationConfig(kind="token-classification", model=str(tiny_encoder)), None)
    torch.manual_seed(0)
    encoder = new_encoder("token-classification", weights, pretrained=True, problem=PROBLEM, max_length=64)
    encoded = list(encode_all(encoder, PROBLEM, texts))
    targets = [np.asarray(PROBLEM.targets(text, label)) for text, label in zip(texts, labels, strict=True)]
    device = Device("cpu", "fp32", 1)
    train(encoder, TrainingRows(encoded, targets), training, seed=0, device=device)
    found = [one.label for one in predict(encoder, PROBLEM, texts, device=device, total=len(texts))]
    sums = np.sum([PROBLEM.statistics("bracket_f1", g, p) for g, p in zip(labels, found, strict=True)], axis=0)
    flat = [f"(S {text})" for text in texts]
    baseline = np.sum([PROBLEM.statistics("bracket_f1", g, p) for g, p in zip(labels, flat, strict=True)], axis=0)
    assert PROBLEM.value("bracket_f1", sums) > 0.9 > PROBLEM.value("bracket_f1", baseline)


def sentence(generator: random.Random) -> tuple[str, Label]:
    def noun_phrase(depth: int) -> str:
        word = f"the {generator.choice(['film', 'weather'])}"
        return (
            f"(NP (NP {word}) (PP in {noun_phrase(depth - 1)}))" if generator.random() < depth / 4 else f"(NP {word})"
        )

    tree = f"(S {noun_phrase(2)} (VP was {generator.choice(['good', '(PP by ' + noun_phrase(1) + ')'])}))"
    return " ".join(decode_label(tree).words), tree


def test_the_report_tells_which_constituents_are_missed() -> None:
    rows = [{"text": TEXT, "gold": gold(TEXT, TREE), "predicted": BARE.replace("PP", "ADVP")}]
    constituents, wholes = error_tables(CONFIG, PROBLEM, rows)
    by_name = {one.name: (one.support, one.predicted, one.f1) for one in constituents.names}
    assert by_name["NP"] == (2, 2, 1.0)
    assert by_name["PP"] == (1, 0, 0.0)
    assert [(one.gold, one.predicted) for one in constituents.confusions] == [("PP", "ADVP")]
    assert [one.name for one in wholes.names] == ["S"]


def test_unlabeled_trees_keep_their_spans_once() -> None:
    tree = read_tree("(S (VP (V a) (NP (NP (D b) (N c)))))", is_tag=lambda label: True)
    assert unlabeled(tree).spans == (Span("X", 0, 3), Span("X", 1, 3))


def test_labels_that_a_reader_of_trees_makes_one_are_refused() -> None:
    for labels in (["NP", "NP-SBJ"], ["S+NP=2", "NP"], ["\u00dcP", "U\u0308P"]):
        with pytest.raises(ConfigError, match="must differ in more than function tags"):
            Constituency(ConstituencyConfig(kind="constituency", labels=labels))
    Constituency(ConstituencyConfig(kind="constituency", labels=["NP", "NP-SBJ"], function_tags=True))
    assert Constituency(ConstituencyConfig(kind="constituency", labels=["S", "A,B"])).schema == "A,B S"


@given(st.lists(st.sampled_from(["(", ")", "(NP", "-LRB-", "]", "[SL:X", "a", "\\"]), min_size=2, max_size=6))
def test_words_that_look_like_brackets_can_be_parsed_back(words: list[str]) -> None:
    text, tree = (
        " ".join(words),
        tree_of(
            [word.replace("(", "-LRB-").replace(")", "-RRB-") for word in words],
            [""] * len(words),
            [Span("S", 0, len(words))],
        ),
    )
    label = encode_label(tree)
    assert PROBLEM.parse(text, PROBLEM.render(text, label)) == label
