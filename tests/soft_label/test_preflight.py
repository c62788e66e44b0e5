"""Data that is wrong: one sentence, before anything is trained."""

from collections.abc import Callable
from typing import Any

import pytest

from retort.commands.doctor import examine
from retort.errors import DataError
from retort.recipes.soft_label.checks import check

Row = dict[str, Any]


def test_data_that_is_right_passes(job: Any) -> None:
    assert check(job.config()).problem.labels == ["wrong", "half", "right"]


def test_classes_are_read_off_the_training_rows(job: Any) -> None:
    job.values["problem"] = {"kind": "classification"}
    assert check(job.config()).problem.labels == ["half", "right", "wrong"]


def a_new_label(rows: list[Row]) -> list[Row]:
    return [{**rows[0], "label": "maybe"}, *rows[1:]]


def one_of_a_class(rows: list[Row]) -> list[Row]:
    wrong = [row for row in rows if row["label"] == "wrong" and row["fold"]]
    return [row for row in rows if row["label"] != "wrong" or row["fold"] == 0] + wrong[:1]


def training_rows(rows: list[Row]) -> list[Row]:
    return [{**row, "id": f"again-{row['id']}"} for row in rows]


def an_empty_label(rows: list[Row]) -> list[Row]:
    return [{**rows[0], "label": ""}, *rows[1:]]


@pytest.mark.parametrize(
    ("read", "written", "change", "sentence"),
    [
        ("test", "test", a_new_label, "test.jsonl, line 1: label 'maybe' is not a class; allowed: wrong, half, right"),
        (
            "train",
            "train",
            one_of_a_class,
            "data.train: the class 'wrong' has 1 training row(s); at least 2 are needed",
        ),
        ("train", "test", training_rows, "data.tests.unseen and data.train share"),
        ("test", "test", an_empty_label, "test.jsonl, line 1: no gold label, which is needed here"),
    ],
)
def test_wrong_rows_are_named(
    job: Any, read: str, written: str, change: Callable[[list[Row]], list[Row]], sentence: str
) -> None:
    job.write(f"{written}.jsonl", change(job.read(f"{read}.jsonl")))
    assert_refused(job, sentence)


def half_as_many(rows: list[Row]) -> list[Row]:
    return rows[:40]


def too_much(rows: list[Row]) -> list[Row]:
    return [*rows[:3], {**rows[3], "probabilities": {"right": 0.8, "half": 0.8, "wrong": 0.1}}, *rows[4:]]


def a_class_less(rows: list[Row]) -> list[Row]:
    return [*rows[:3], {**rows[3], "probabilities": {"right": 0.5, "half": 0.5}}, *rows[4:]]


def below_nothing(rows: list[Row]) -> list[Row]:
    return [*rows[:3], {**rows[3], "probabilities": {"right": 1.1, "half": -0.1, "wrong": 0.0}}, *rows[4:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (half_as_many, "knows 32 of 96 training rows, below teacher.min_success_ratio = 0.9"),
        (too_much, "said.jsonl, line 4: the probabilities sum to 1.7, where 1 is needed"),
        (a_class_less, "said.jsonl, line 4: the class 'wrong' has no probability"),
        (below_nothing, "said.jsonl, line 4: the probability of 'right' is 1.1"),
    ],
)
def test_wrong_probabilities_are_named(job: Any, change: Callable[[list[Row]], list[Row]], sentence: str) -> None:
    job.write("said.jsonl", change(job.read("said.jsonl")))
    assert_refused(job, sentence)


def test_a_model_that_is_not_there_is_named(job: Any) -> None:
    job.values["teacher"] = {"kind": "finetuned", "model": "pkg:no_such_package/model"}
    with pytest.raises(Exception, match=r"teacher.model = 'pkg:no_such_package/model': the package 'no_such_package'"):
        check(job.config())


def assert_refused(job: Any, sentence: str) -> None:
    with pytest.raises(DataError) as refusal:
        check(job.config())
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_the_doctor_looks_at_everything(job: Any) -> None:
    found = {finding.what: finding.verdict for finding in examine(job.config())}
    assert found == {
        "versions": "ok",
        "store": "ok",
        "data.train": "ok",
        "data.dev": "ok",
        "data.unseen": "ok",
        "data.unlabeled": "ok",
        "classes": "ok",
        "leakage": "ok",
        "teacher": "ok",
        "arms": "ok",
        "tracking": "note",
    }
    job.write("test.jsonl", a_new_label(job.read("test.jsonl")))
    found = {finding.what: finding.verdict for finding in examine(job.config())}
    assert found["data.unseen"] == "wrong"
