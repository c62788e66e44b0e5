"""Rows of several fields, folds, groups; recorded probabilities; what is wrong with either."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config.soft_label import AnswerColumnsConfig
from retort.data import read_examples
from retort.data.fields import join_fields, split_fields
from retort.data.probabilities import by_name, read_probabilities
from retort.data.reading import Folds
from retort.errors import DataError
from retort.problems.classification import Classification

CLASSES = ("right", "half", "wrong")
COLUMNS = AnswerColumnsConfig(text=["answer", "reference"], group="question")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def answer(number: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"a{number}", "question": f"q{number % 2}", "answer": f"it is {number}", "reference": "it is"}
    return {**row, "label": CLASSES[number % 3], "fold": number % 4, **changes}


@given(st.dictionaries(st.sampled_from(["answer", "reference", "the question"]), st.text(), min_size=1))
def test_fields_come_back_as_they_were(fields: dict[str, str]) -> None:
    assert split_fields(join_fields(fields)) == fields
    assert list(split_fields(join_fields(fields))) == list(fields)


def test_an_empty_answer_is_kept_with_its_question_as_the_group(tmp_path: Path) -> None:
    rows = [answer(0), answer(1, answer=""), answer(2, answer=None)]
    examples = list(read_examples(write(tmp_path / "a.jsonl", rows), COLUMNS, Classification(CLASSES), gold="required"))
    texts = [example.text for example in examples]
    assert texts == ["answer: it is 0\nreference: it is", *["answer: \nreference: it is"] * 2]
    assert [example.group for example in examples] == ["q0", "q1", "q0"]


@pytest.mark.parametrize("inside", [True, False])
def test_folds_part_the_rows(tmp_path: Path, inside: bool) -> None:
    source = write(tmp_path / "a.jsonl", [answer(number) for number in range(12)])
    folds = Folds("fold", frozenset({1, 3}), inside)
    examples = read_examples(source, COLUMNS, Classification(CLASSES), gold="required", folds=folds)
    assert [int(e.example_id[1:]) % 4 in (1, 3) for e in examples] == [inside] * 6


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"reference": 3}, "a.jsonl, line 2: 'reference' is 3, where a text is needed"),
        ({"label": "maybe"}, "label 'maybe' is not a class; allowed: right, half, wrong"),
        ({"fold": "x"}, "'fold' is 'x', where a whole number is needed"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    source = write(tmp_path / "a.jsonl", [answer(0), answer(1, **row)])
    folds = Folds("fold", frozenset({9}), inside=False)
    with pytest.raises(DataError) as failure:
        list(read_examples(source, COLUMNS, Classification(CLASSES), gold="required", folds=folds))
    assert sentence in str(failure.value)


@pytest.mark.parametrize("column", ["question", "answer", "fold"])
def test_a_column_that_is_missing_is_named(tmp_path: Path, column: str) -> None:
    row = {name: value for name, value in answer(0).items() if name != column}
    source = write(tmp_path / "a.jsonl", [row])
    folds = Folds("fold", frozenset({9}), inside=False)
    with pytest.raises(DataError, match=f"line 1: no column '{column}'"):
        list(read_examples(source, COLUMNS, Classification(CLASSES), gold="required", folds=folds))


def probabilities(*values: Any, id: Any = "a0", names: Sequence[str] = CLASSES) -> dict[str, Any]:
    return {"id": id, "probabilities": dict(zip(names, values, strict=True))}


def test_classes_in_another_order_are_joined_by_their_names(tmp_path: Path) -> None:
    rows = [probabilities(0.7, 0.2, 0.1), probabilities(0.1, 0.7, 0.2, id="a1", names=("wrong", "right", "half"))]
    first, second = read_probabilities(write(tmp_path / "p.jsonl", rows), CLASSES)
    assert np.allclose(first.values, [0.7, 0.2, 0.1])
    assert np.allclose(second.values, first.values)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (probabilities(0.5, 0.2, 0.1, id="a1"), "p.jsonl, line 2: the probabilities sum to 0.8, where 1 is needed"),
        (probabilities(1.2, -0.2, 0.0, id="a1"), "line 2: the probability of 'right' is 1.2, where a number from 0 to"),
        (probabilities(1.0, -0.1, 0.1, id="a1"), "line 2: the probability of 'half' is -0.1, where a number from 0"),
        (probabilities(float("nan"), 0.5, 0.5, id="a1"), "the probability of 'right' is nan"),
        (probabilities("1", 0.0, 0.0, id="a1"), "the probability of 'right' is '1'"),
        (probabilities(0.5, 0.5, id="a1", names=CLASSES[:2]), "line 2: the class 'wrong' has no probability"),
        (
            {**probabilities(0, 0, 0.5, id="a1"), "probabilities": {**dict.fromkeys(CLASSES, 0.25), "odd": 0.25}},
            "'odd'",
        ),
        (probabilities(1.0, 0.0, 0.0), "line 2: the id 'a0' is already that of"),
        ({"id": "a1", "probabilities": [1, 0, 0]}, "where {CLASS: p, ...} is needed"),
        ({"probabilities": {}}, "the id ('id') is None"),
        (probabilities(1.0, 0.0, 0.0, id="a\ud83d"), "line 2: 'id' holds half of a surrogate pair"),
    ],
)
def test_what_is_no_distribution_is_named(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    source = write(tmp_path / "p.jsonl", [probabilities(0.7, 0.2, 0.1), row])
    with pytest.raises(DataError) as failure:
        list(read_probabilities(source, CLASSES))
    assert sentence in str(failure.value)
    assert "\n" not in str(failure.value)


def test_an_id_that_comes_again_much_later_is_named_and_the_rows_before_come_first(tmp_path: Path) -> None:
    rows = [probabilities(1.0, 0.0, 0.0, id=number) for number in [*range(3000), 7, 8]]
    read = read_probabilities(write(tmp_path / "p.jsonl", rows), CLASSES)
    assert [next(read).example_id for _ in range(3000)] == [str(number) for number in range(3000)]
    with pytest.raises(DataError, match=r"p.jsonl, line 3001: the id '7' is already that of .*p.jsonl, line 8"):
        next(read)


def test_columns_follow_their_names_and_rows_sum_to_one() -> None:
    values = np.array([[1.0, 3.0], [2.0, 0.0]])
    assert np.allclose(by_name(values, ("b", "a"), ("a", "c", "b")), [[0.75, 0, 0.25], [0, 0, 1]])
    with pytest.raises(DataError, match="'b' is not a class"):
        by_name(values, ("b", "a"), ("a", "c"))
