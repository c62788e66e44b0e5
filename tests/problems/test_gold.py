"""What is a gold label in a row, and what is none, in every kind of problem."""

import json
import math
from typing import Any

import pytest

from retort.config import ClassificationConfig, ColumnsConfig, ConstituencyConfig, SlotsConfig, TextConfig
from retort.config import Problem as Config
from retort.errors import DataError
from retort.problems import infer_schema, problem_for
from retort.records.base import ParseFailure

COLUMNS = ColumnsConfig()
CLASSES = ClassificationConfig(kind="classification", labels=["1", "nan", "good"])
SLOTS = SlotsConfig(kind="slots", intents={"PLAY": ["ARTIST"]})
TREES = ConstituencyConfig(kind="constituency", labels=["S"])
TEXT = TextConfig(kind="text")
PROBLEMS = [CLASSES, SLOTS, TREES, TEXT]


@pytest.mark.parametrize("config", PROBLEMS, ids=lambda config: config.kind)
@pytest.mark.parametrize("value", [None, math.nan, "", " \n", b" "])
def test_null_nan_and_white_space_are_no_label(config: Config, value: Any) -> None:
    problem = problem_for(config)
    assert problem.gold({"text": "play queen", "label": value}, COLUMNS) is None
    assert problem.gold({"text": "play queen", "label": value, "bio": math.nan, "intent": value}, COLUMNS) is None
    assert problem.gold({"text": "play queen"}, COLUMNS) is None


@pytest.mark.parametrize("config", [CLASSES, SLOTS, TREES], ids=lambda config: config.kind)
@pytest.mark.parametrize("value", [["good"], {"label": "good"}, ("good",), math.inf, b"\xff"])
def test_what_is_no_text_is_refused(config: Config, value: Any) -> None:
    with pytest.raises(DataError, match="'label' is "):
        problem_for(config).gold({"text": "good", "label": value}, COLUMNS)


def test_bytes_are_read_as_utf8() -> None:
    assert problem_for(CLASSES).gold({"text": "a", "label": b" good "}, COLUMNS) == "good"
    assert problem_for(TEXT).gold({"text": "a", "label": "né".encode()}, COLUMNS) == "né"
    row = {"text": "play queen", "intent": b"PLAY", "bio": b"O B-ARTIST"}
    assert problem_for(SLOTS).gold(row, COLUMNS) == problem_for(SLOTS).gold(
        {"text": "play queen", "intent": "PLAY", "bio": ["O", "B-ARTIST"]}, COLUMNS
    )


@pytest.mark.parametrize("tags", [7, {"O": 1}, ["O", 4], ["O", None], math.inf])
def test_tags_that_are_none(tags: Any) -> None:
    with pytest.raises(DataError):
        problem_for(SLOTS).gold({"text": "play queen", "intent": "PLAY", "bio": tags}, COLUMNS)


def test_numbers_are_class_names() -> None:
    for value in (1, 1.0, "1"):
        assert problem_for(CLASSES).gold({"text": "a", "label": value}, COLUMNS) == "1"


def test_classes_are_inferred_from_what_is_a_label() -> None:
    rows: list[dict[str, Any]] = [{"label": "a"}, {"label": math.nan}, {"label": b"b"}, {"label": ["c"]}, {"label": ""}]
    inferred = infer_schema(ClassificationConfig(kind="classification"), rows, COLUMNS)
    assert isinstance(inferred, ClassificationConfig)
    assert inferred.labels == ["a", "b"]
    with pytest.raises(DataError, match=r"'label' is \['a'\], where a text or a number is needed"):
        infer_schema(ClassificationConfig(kind="classification"), [{"label": ["a"]}] * 3, COLUMNS)


def test_a_key_twice_in_a_json_answer() -> None:
    problem = problem_for(TextConfig(kind="text", json_schema={"type": "object"}))
    for completion in ('{"a": 1, "a": 2}', '{"b": [{"a": 1, "a": 1}]}'):
        failure = problem.parse("", completion)
        assert isinstance(failure, ParseFailure)
        assert (failure.reason, failure.detail) == ("key-twice", "In its JSON, 'a' is written twice.")
    assert json.loads(str(problem.parse("", '{"a": {"a": 1}}'))) == {"a": {"a": 1}}
