"""What a label may be wrapped in, and what is deliberately not salvaged."""

import pytest

from retort.problems.classification import Classification
from retort.problems.slots import Slots
from retort.records.base import ParseFailure
from retort.teachers.salvage import parse_completion

CLASSES = Classification(["correct", "incorrect", "correct but incomplete"])
SLOTS = Slots({"PLAY": ["ARTIST"]})
PARSE = "[IN:PLAY [SL:ARTIST cher ] ]"


@pytest.mark.parametrize("completion", ["correct", " Correct.\n", "CORRECT"])
def test_a_label_alone_is_not_salvaged(completion: str) -> None:
    assert parse_completion(CLASSES, "an answer", completion) == ("correct", False)


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
    assert parse_completion(CLASSES, "an answer", completion) == ("correct", True)


@pytest.mark.parametrize(
    "completion", [f"Here is the parse: {PARSE}", f"{PARSE}\n\nThe intent is PLAY.", f"```json\n{PARSE}\n```"]
)
def test_a_wrapped_parse_is_found(completion: str) -> None:
    label, salvaged = parse_completion(SLOTS, "play cher", completion)
    assert (label, salvaged) == (SLOTS.parse("play cher", PARSE), True)


@pytest.mark.parametrize(
    "completion", ["The answer is not correct", "correct or incorrect", "<think>correct", "", "[IN:PLAY"]
)
def test_what_needs_guessing_is_a_failure_with_its_raw_text(completion: str) -> None:
    outcome, salvaged = parse_completion(CLASSES, "an answer", completion)
    assert isinstance(outcome, ParseFailure)
    assert (outcome.raw, salvaged) == (completion, False)
