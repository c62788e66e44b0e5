"""What a label may be wrapped in, and what is deliberately not salvaged."""

import pytest

from retort.config import ConstituencyConfig, TextConfig
from retort.problems import Problem
from retort.problems.classification import Classification
from retort.problems.constituency import Constituency
from retort.problems.slots import Slots
from retort.problems.text import FreeText
from retort.records.base import ParseFailure
from retort.teachers.salvage import parse_completion

CLASSES = Classification(["correct", "incorrect", "correct but incomplete"])
SLOTS = Slots({"PLAY": ["ARTIST"]})
FREE = FreeText(TextConfig(kind="text"))
RECORDS = FreeText(TextConfig(kind="text", json_schema={"type": "object"}))
TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP"]))
PARSE = "[IN:PLAY [SL:ARTIST cher ] ]"


@pytest.mark.parametrize("completion", ["correct", " Correct.\n", "CORRECT"])
def test_a_label_alone_is_not_salvaged(completion: str) -> None:
    assert parse_completion(CLASSES, "an answer", completion) == ("correct", False, 1.0)


@pytest.mark.parametrize(
    "completion",
    [
        "<think>It may be incorrect.\nNo: it is right.</think>\n\ncorrect",
        "```\ncorrect\n```",
        "```text\ncorrect```",
        '"correct"',
        "**correct**",
        "\n\ncorrect\n\nInput: another row",
        "Label: correct",
        "Output: `correct`",
    ],
)
def test_a_wrapped_class_is_found(completion: str) -> None:
    assert parse_completion(CLASSES, "an answer", completion) == ("correct", True, 1.0)


@pytest.mark.parametrize(
    "completion", [f"Here is the parse: {PARSE}", f"{PARSE}\n\nThe intent is PLAY.", f"```json\n{PARSE}\n```"]
)
def test_a_wrapped_parse_is_found(completion: str) -> None:
    assert parse_completion(SLOTS, "play cher", completion) == (SLOTS.parse("play cher", PARSE), True, 1.0)


@pytest.mark.parametrize(
    "completion", ["The answer is not correct", "correct or incorrect", "<think>correct", "", "[IN:PLAY"]
)
def test_what_needs_guessing_is_a_failure_with_its_raw_text(completion: str) -> None:
    outcome, salvaged, _ = parse_completion(CLASSES, "an answer", completion)
    assert isinstance(outcome, ParseFailure)
    assert (outcome.raw, salvaged) == (completion, False)


ALL = [(CLASSES, "correct"), (SLOTS, PARSE), (FREE, "hello"), (RECORDS, '{"n": 1}'), (TREES, "(S play (NP cher))")]


@pytest.mark.parametrize(("problem", "said"), ALL)
def test_thoughts_are_no_part_of_a_label(problem: Problem, said: str) -> None:
    label = problem.parse("play cher", said)
    assert not isinstance(label, ParseFailure)
    for thoughts in ("<think>Is it?</think>\n", "Is it?\n</think>\n\n", f"<think>{said}</think> <think></think>"):
        assert parse_completion(problem, "play cher", thoughts + said) == (label, True, 1.0)


@pytest.mark.parametrize(("problem", "said"), ALL)
def test_a_completion_of_thoughts_has_no_label(problem: Problem, said: str) -> None:
    for completion in (f"<think>{said}", f"\n<think>It is\n{said}\n", f"<think>Hm</think> <think>\n{said}"):
        for finish_reason, reason in (("stop", "only-thoughts"), (None, "only-thoughts"), ("length", "cut-short")):
            outcome, salvaged, _ = parse_completion(problem, "play cher", completion, finish_reason)
            assert isinstance(outcome, ParseFailure)
            assert (outcome.reason, outcome.raw, salvaged) == (reason, completion, False)


@pytest.mark.parametrize(("problem", "said"), ALL)
def test_what_a_filter_ended_is_no_label(problem: Problem, said: str) -> None:
    outcome, _, _ = parse_completion(problem, "play cher", said, "content_filter")
    assert isinstance(outcome, ParseFailure)
    assert (outcome.reason, outcome.raw) == ("filtered", said)


@pytest.mark.parametrize(
    ("problem", "completion"),
    [
        (FREE, "hello unlab"),
        (FREE, "hello\nunlab"),
        (RECORDS, '{"n": 1}'),
        (CLASSES, "correct"),  # perhaps of "correct but incomplete"
        (CLASSES, "It is\ncorrect"),
        (SLOTS, "[IN:PLAY [SL:ARTIST cher ]"),
        (TREES, "(XP play"),
    ],
)
def test_what_was_cut_is_no_label(problem: Problem, completion: str) -> None:
    outcome, _, _ = parse_completion(problem, "play cher", completion, "length")
    assert isinstance(outcome, ParseFailure)
    assert (outcome.reason, outcome.raw) == ("cut-short", completion)
    assert "token limit" in outcome.detail


@pytest.mark.parametrize(
    ("problem", "completion", "said"),
    [
        (CLASSES, "correct\n\nBecause it", "correct"),
        (CLASSES, "Label: correct\nIn", "correct"),
        (SLOTS, f"{PARSE}\n\nThe intent", PARSE),
        (TREES, "(S play (NP cher)) (S", "(S play (NP cher))"),
    ],
)
def test_what_was_whole_before_the_cut_is_a_label(problem: Problem, completion: str, said: str) -> None:
    label = problem.parse("play cher", said)
    assert parse_completion(problem, "play cher", completion, "length") == (label, True, 1.0)


def test_labels_of_which_the_end_was_cut_are_counted() -> None:
    reading = parse_completion(TREES, "play cher", "(S play (NP ch", "length")
    assert reading == ("(S play cher)", True, 0.5)
    assert reading.counted == ("salvaged", "cut")
    assert parse_completion(TREES, "play cher", "(S play (NP cher").counted == ("salvaged",)
    assert parse_completion(TREES, "play cher", "(S play (NP cher))").counted == ()
