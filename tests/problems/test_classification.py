"""Classification against scikit-learn, and what a completion may look like."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from retort.config import ClassificationConfig, ColumnsConfig, Metric
from retort.errors import ConfigError, DataError
from retort.problems import infer_schema, problem_for
from retort.problems.classification import Classification
from retort.records.base import ParseFailure

COLUMNS = ColumnsConfig()
GRADES = ["poor", "fair", "good", "fine"]
PROBLEM = Classification(GRADES)
pairs = st.lists(st.tuples(st.sampled_from(GRADES), st.sampled_from(GRADES)), min_size=1, max_size=30)


def value(metric: Metric, rows: Sequence[tuple[str, str | None]]) -> float:
    sums = np.sum([PROBLEM.statistics(metric, gold, predicted) for gold, predicted in rows], axis=0)
    return float(PROBLEM.value(metric, sums))


@given(pairs)
def test_accuracy_and_macro_f1_equal_scikit_learn(rows: list[tuple[str, str]]) -> None:
    gold, predicted = zip(*rows, strict=True)
    assert value("accuracy", rows) == pytest.approx(accuracy_score(gold, predicted))
    assert value("macro_f1", rows) == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))


@given(pairs)
def test_kappa_equals_scikit_learn_where_that_is_defined(rows: list[tuple[str, str]]) -> None:
    gold, predicted = zip(*rows, strict=True)
    if len({*gold, *predicted}) == 1:
        assert value("quadratic_weighted_kappa", rows) == 1.0
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(gold, predicted, labels=GRADES, weights="quadratic")
    assert value("quadratic_weighted_kappa", rows) == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from(GRADES), st.sampled_from([*GRADES, None])), min_size=1, max_size=20))
def test_a_missing_prediction_counts_as_the_farthest_class(rows: list[tuple[str, str | None]]) -> None:
    farthest = {"poor": "fine", "fair": "fine", "good": "poor", "fine": "poor"}
    filled = [(gold, predicted or farthest[gold]) for gold, predicted in rows]
    assert value("quadratic_weighted_kappa", rows) == pytest.approx(value("quadratic_weighted_kappa", filled))
    assert value("accuracy", rows) == sum(gold == predicted for gold, predicted in rows) / len(rows)
    expected = f1_score(
        [gold for gold, _ in rows],
        [predicted or "none" for _, predicted in rows],
        labels=sorted({name for row in rows for name in row if name}),
        average="macro",
        zero_division=0,
    )
    assert value("macro_f1", rows) == pytest.approx(expected)


def test_values_are_computed_for_many_sums_at_once() -> None:
    for metric in ("macro_f1", "quadratic_weighted_kappa"):
        right = PROBLEM.statistics(metric, "poor", "poor") + PROBLEM.statistics(metric, "fine", "fine")
        wrong = PROBLEM.statistics(metric, "poor", "fine") + PROBLEM.statistics(metric, "fine", "poor")
        values = PROBLEM.value(metric, np.stack([right, wrong, np.zeros_like(right)]))
        assert values.tolist() == [1.0, -1.0 if metric == "quadratic_weighted_kappa" else 0.0, 0.0]


@pytest.mark.parametrize("completion", ["good", " Good.\n", "GOOD", "good ."])
def test_parse_tolerates_case_white_space_and_a_final_period(completion: str) -> None:
    assert PROBLEM.parse("text", completion) == "good"


@pytest.mark.parametrize(("completion", "reason"), [("", "empty"), (" \n", "empty"), ("goodish", "unknown-label")])
def test_failures(completion: str, reason: str) -> None:
    failure = PROBLEM.parse("text", completion)
    assert isinstance(failure, ParseFailure)
    assert (failure.reason, failure.raw) == (reason, completion)
    assert reason == "empty" or "poor, fair, good, fine" in failure.detail


@given(st.text())
def test_parse_never_raises(completion: str) -> None:
    PROBLEM.parse("text", completion)


def test_many_classes_are_shortened_in_messages() -> None:
    failure = Classification([f"c{number}" for number in range(77)]).parse("", "x")
    assert isinstance(failure, ParseFailure)
    assert failure.detail.endswith("c11 ... (77 in all).")


@pytest.mark.parametrize(("label", "gold"), [("good", "good"), (" good ", "good"), (None, None), ("", None)])
def test_gold(label: str | None, gold: str | None) -> None:
    assert PROBLEM.gold({"text": "x", "label": label}, COLUMNS) == gold


def test_gold_of_numbers_and_of_unknown_classes() -> None:
    scores = Classification(["0", "1"])
    assert [scores.gold({"label": label}, COLUMNS) for label in (1, 1.0, "1")] == ["1"] * 3
    with pytest.raises(DataError, match="label '2' is not a class; allowed: 0, 1"):
        scores.gold({"label": 2}, COLUMNS)


def test_one_unit_that_takes_any_class() -> None:
    assert PROBLEM.words("a b") == ["a b"]
    assert PROBLEM.targets("a b", "good") == [2]
    assert PROBLEM.allowed(1).tolist() == [[True] * 4]
    assert PROBLEM.decide("a b", np.array([[0.1, 0.1, 0.2, 0.1]])) == ("good", pytest.approx(0.4))
    assert PROBLEM.constraint("a b").choice == tuple(GRADES)
    assert (PROBLEM.render("a b", "good"), PROBLEM.parts("good")) == ("good", ["good"])


@pytest.mark.parametrize(
    "labels",
    [
        ["a"],
        ["a", "A"],
        ["a", "a"],
        ["a", "a."],
        ["a", " "],
        ["a b", "a  b"],
        ["a b", "a\nb"],
        ["caf\u00e9", "cafe\u0301"],
    ],
)
def test_classes_that_parse_cannot_tell_apart_are_refused(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"problem\.labels"):
        Classification(labels)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["b", "a", None, "b"], ["a", "b"]), ([10, 9, 2.0], ["2", "9", "10"]), (["1", "x"], ["1", "x"])],
)
def test_labels_are_read_off_rows(labels: list[Any], expected: list[str]) -> None:
    config = infer_schema(ClassificationConfig(kind="classification"), [{"label": label} for label in labels], COLUMNS)
    assert config == ClassificationConfig(kind="classification", labels=expected)
    assert infer_schema(config, [], COLUMNS) is config
    assert problem_for(config).classes == tuple(expected)


def test_labels_that_cannot_be_read_off_rows() -> None:
    config = ClassificationConfig(kind="classification")
    with pytest.raises(DataError, match="hold 1 different classes in the field 'label'"):
        infer_schema(config, [{"label": "a"}, {"label": "a"}], COLUMNS)
    ordered = ClassificationConfig(kind="classification", ordered=True)
    with pytest.raises(ConfigError, match="from low to high"):
        infer_schema(ordered, [{"label": "low"}, {"label": "high"}], COLUMNS)
    with pytest.raises(ConfigError, match=r"problem\.labels is not given"):
        problem_for(config)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["no", "yes"], "no, yes"),
        (["it's", "a-b; c"], "it's, a-b; c"),
        (["no", "yes", "yes, but"], '"no", "yes", "yes, but"'),
        (["no", "a\nb"], r'"no", "a\nb"'),
        (["no", " yes"], '"no", " yes"'),
        (["no", 'say "yes"'], r'"no", "say \"yes\""'),
        (["né", "a,b"], '"né", "a,b"'),
    ],
)
def test_classes_can_be_told_apart_in_the_prompt(labels: list[str], shown: str) -> None:
    problem = Classification(labels)
    assert problem.schema == shown
    for label in labels:
        assert problem.parse("", problem.render("", label)) == label
        if shown.startswith('"'):
            assert problem.parse("", json.dumps(label, ensure_ascii=False)) == label


def test_bytes_are_read_as_utf_8() -> None:
    """As a binary column of Parquet has them."""
    problem = Classification(["bad", "café"])
    assert problem.gold({"label": "café".encode()}, ColumnsConfig()) == "café"
    with pytest.raises(DataError, match="'label' is not UTF-8"):
        problem.gold({"label": b"caf\xe9"}, ColumnsConfig())
