"""Numbers on a scale: what is read as one, distributions, metrics against scipy and scikit-learn."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, root_mean_squared_error

from retort.config import ColumnsConfig, Metric, RegressionConfig
from retort.errors import DataError
from retort.metrics.bootstrap import value_on
from retort.metrics.scores import statistics_of, value_of
from retort.problems import problem_for
from retort.problems.base import is_put_right, spread
from retort.problems.regression import Regression
from retort.records.base import ParseFailure

COLUMNS = ColumnsConfig()


def scale(low: float, high: float, **fields: Any) -> Regression:
    return Regression(RegressionConfig.model_validate({"kind": "regression", "low": low, "high": high, **fields}))


MARKS, SHARE = scale(0, 5, step=1), scale(0, 1)


def value(problem: Regression, metric: Metric, rows: Sequence[tuple[str, str | None]]) -> float:
    golds, predicted = zip(*rows, strict=True)
    return value_on(statistics_of(problem, metric, golds, predicted), value_of(problem, metric))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 1, "high": 1}, "must be below"),
        ({"low": 2, "high": 1}, "must be below"),
        ({"low": 0, "high": 5, "step": 2}, "does not lead from"),
        ({"low": 0, "high": 1, "step": 0}, "greater than 0"),
        ({"low": 0, "high": 5000, "step": 1}, "at most 1001"),
        ({"low": 0, "high": 5, "step": 1, "decimals": 2}, "leave it out"),
        ({"low": 0, "high": 100, "decimals": 2}, "allowed: 2 to 1001"),
        ({"low": 0.1, "high": 0.9, "decimals": 0}, "allowed: 2 to 1001"),
        ({"low": 0, "high": math.inf}, "finite"),
    ],
)
def test_what_is_no_scale(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RegressionConfig.model_validate({"kind": "regression", **fields})


def test_steps_are_decimal_numbers() -> None:
    assert scale(0, 1, step=0.1).classes == (*(f"0.{n}" for n in range(10)), "1.0")
    assert scale(-1, 1, step=0.5).classes == ("-1.0", "-0.5", "0.0", "0.5", "1.0")
    assert scale(0.5, 2.5, step=1).classes == ("0.5", "1.5", "2.5")
    assert MARKS.schema == "0, 1, 2, 3, 4, 5"
    assert scale(0, 100, step=1).schema == "0 to 100 in steps of 1"
    assert SHARE.schema == "0.00 to 1.00 in steps of 0.01"
    assert scale(0, 100).schema == "0 to 100 in steps of 1"
    assert scale(0, 5).schema == "0.00 to 5.00 in steps of 0.01"


@pytest.mark.parametrize(
    ("problem", "completion", "label"),
    [
        (MARKS, "3", "3"),
        (MARKS, " 3.\n", "3"),
        (MARKS, "3.0", "3"),
        (MARKS, "+3", "3"),
        (MARKS, "3e0", "3"),
        (MARKS, "-0", "0"),
        (MARKS, "2.9999999999", "3"),
        (SHARE, "0.5", "0.5"),
        (SHARE, ".50", "0.5"),
        (SHARE, "1", "1"),
        (SHARE, "1e-3", "0.001"),
        (SHARE, "0.123456789", "0.123457"),
        (SHARE, "-0.0", "0"),
        (scale(-5, 5), "-0.0000001", "0"),
        (scale(0, 100), "100", "100"),
        (scale(0, 1, step=0.1), "0.1000000015", "0.1"),
    ],
)
def test_numbers_in_other_digits_are_the_same_label(problem: Regression, completion: str, label: str) -> None:
    assert problem.parse("", completion) == label


@pytest.mark.parametrize(
    ("problem", "completion", "reason"),
    [
        (MARKS, "", "empty"),
        (MARKS, "\n ", "empty"),
        (MARKS, "6", "out-of-range"),
        (MARKS, "-1", "out-of-range"),
        (MARKS, "1e999", "out-of-range"),
        (MARKS, "3.5", "between-steps"),
        (SHARE, "1.01", "out-of-range"),
        (MARKS, "4/5", "not-a-number"),
        (MARKS, "3,5", "not-a-number"),
        (MARKS, "three", "not-a-number"),
        (MARKS, "nan", "not-a-number"),
        (MARKS, "inf", "not-a-number"),
        (MARKS, "3-4", "not-a-number"),
        (MARKS, "٣", "not-a-number"),
        (MARKS, "1_0", "not-a-number"),
        (MARKS, "0x1", "not-a-number"),
        (MARKS, "1e99999999999", "not-a-number"),
    ],
)
def test_what_is_set_aside(problem: Regression, completion: str, reason: str) -> None:
    found = problem.parse("", completion)
    assert isinstance(found, ParseFailure)
    assert (found.reason, found.raw) == (reason, completion)


@given(st.text(max_size=20))
def test_parsing_never_raises_and_a_label_is_its_own_label(completion: str) -> None:
    for problem in (MARKS, SHARE, scale(-1, 1, step=0.25)):
        label = problem.parse("", completion)
        if not isinstance(label, ParseFailure):
            assert problem.parse("", label) == label


@pytest.mark.parametrize(
    ("given_", "label"),
    [(3, "3"), (3.0, "3"), ("3", "3"), (" 3 ", "3"), (b"3", "3"), (None, None), ("", None), (math.nan, None)],
)
def test_gold(given_: object, label: str | None) -> None:
    assert MARKS.gold({"label": given_}, COLUMNS) == label


@pytest.mark.parametrize("given_", [True, "good", 6, -1, 3.5, "NaN", "inf"])
def test_gold_outside_the_scale(given_: object) -> None:
    with pytest.raises(DataError, match=r"^the label .* (is no number from 0 to 5|is not allowed: )"):
        MARKS.gold({"label": given_}, COLUMNS)


@pytest.mark.parametrize("given_", [[3], [], {"a": 1}, math.inf, b"\xff"])
def test_gold_that_is_no_value(given_: object) -> None:
    with pytest.raises(DataError, match=r"^'label' is (.*, where a text or a number is needed|not UTF-8)$"):
        MARKS.gold({"label": given_}, COLUMNS)


def test_gold_may_have_more_digits_than_are_written() -> None:
    label = SHARE.gold({"label": 1 / 3}, COLUMNS)
    assert label == "0.333333"
    assert SHARE.render("", "0.333333") == "0.33"
    assert SHARE.matches("0.333333", "0.33")
    assert not SHARE.matches("0.333333", "0.34")
    assert not SHARE.matches("0.333333", None)


@pytest.mark.parametrize("problem", [MARKS, SHARE, scale(-1, 1, step=0.25), scale(0.5, 2.75), scale(0, 100, step=1)])
def test_whatever_a_decoder_may_write_is_a_label(problem: Regression) -> None:
    choice = problem.constraint("").choice
    assert choice is not None
    assert len(set(choice)) == len(choice) <= 1001
    for number in choice:
        label = problem.parse("", number)
        assert not isinstance(label, ParseFailure)
        assert problem.render("", label) == number


@given(st.integers(0, 10**6))
def test_the_mean_of_the_distribution_that_a_label_stands_for_is_the_label(millionths: int) -> None:
    for problem in (SHARE, scale(0, 100), scale(-7.5, 2.25)):
        low, high = float(problem.constraint("").choice[0]), float(problem.constraint("").choice[-1])  # type: ignore[index]
        label = problem.parse("", f"{low + (high - low) * millionths / 10**6:.6f}")
        assert isinstance(label, str)
        shares = spread(problem, "", label)
        assert shares.shape == (1, 11)
        assert shares.sum() == pytest.approx(1)
        assert shares.min() >= 0
        assert float(problem.decide("", shares)[0]) == pytest.approx(float(label), abs=2e-6)


def test_with_few_steps_each_has_a_class_of_its_own() -> None:
    assert spread(MARKS, "", "3").tolist() == [[0, 0, 0, 1, 0, 0]]
    assert scale(0, 100, step=1).classes == tuple(str(n) for n in range(0, 101, 10))
    label, confidence = scale(0, 100, step=1).decide("", spread(scale(0, 100, step=1), "", "37"))
    assert (label, confidence > 0.9) == ("37", True)


def test_the_decision_is_the_mean_and_the_confidence_its_spread() -> None:
    assert MARKS.decide("", np.array([[0.0, 0, 0, 0, 1, 0]])) == ("4", 1.0)
    assert MARKS.decide("", np.array([[0.5, 0, 0, 0, 0, 0.5]])) == ("3", pytest.approx(0.0))
    assert MARKS.decide("", np.array([[0.6, 0.4, 0, 0, 0, 0]]))[0] == "0"
    assert MARKS.decide("", np.zeros((1, 6)))[0] == "3"
    assert not is_put_right(MARKS, "", "3", np.array([[0.5, 0, 0, 0, 0, 0.5]]))


def test_several_numbers_come_to_their_mean_or_median() -> None:
    median = scale(0, 1, average="median")
    assert SHARE.merge(["0.1", "0.2", "0.9"], [1, 1, 1])[0] == "0.4"
    assert median.merge(["0.1", "0.2", "0.9"], [1, 1, 1])[0] == "0.2"
    assert median.merge(["0.9", "0.1"], [1, 1])[0] == "0.5"
    assert median.merge(["0.9", "0.1", "0.2"], [5, 1, 1])[0] == "0.9"
    assert SHARE.merge(["0.9", "0.1"], [3, 1])[0] == "0.7"
    assert SHARE.merge(["0.9", "0.1"], [0, 0])[0] == "0.5"
    assert SHARE.merge(["0.3"], [1]) == ("0.3", 1.0)
    assert SHARE.merge(["0", "1"], [1, 1]) == ("0.5", pytest.approx(0.0))
    assert MARKS.merge(["2", "3", "3"], [1, 1, 1])[0] == "3"
    assert scale(0, 5, step=1, average="median").merge(["2", "3"], [1, 1])[0] == "3"  # 2.5 is rounded up


marks = st.integers(0, 5).map(str)
pairs = st.lists(st.tuples(marks, marks), min_size=2, max_size=30)


@given(pairs)
def test_metrics_equal_those_of_others(rows: list[tuple[str, str]]) -> None:
    gold, predicted = (np.array([float(one) for one in side]) for side in zip(*rows, strict=True))
    assert value(MARKS, "rmse", rows) == pytest.approx(root_mean_squared_error(gold, predicted))
    assert value(MARKS, "mae", rows) == pytest.approx(mean_absolute_error(gold, predicted))
    if len({*gold, *predicted}) > 1:
        kappa = cohen_kappa_score(gold.astype(int), predicted.astype(int), labels=range(6), weights="quadratic")
        assert value(MARKS, "quadratic_weighted_kappa", rows) == pytest.approx(kappa)
    if min(np.ptp(gold), np.ptp(predicted)) > 0:
        assert value(MARKS, "pearson", rows) == pytest.approx(pearsonr(gold, predicted).statistic)
        assert value(MARKS, "spearman", rows) == pytest.approx(spearmanr(gold, predicted).statistic)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    rows: list[tuple[str, str | None]] = [("1", "3"), ("2", "3"), ("4", "3")]
    assert value(MARKS, "pearson", rows) == value(MARKS, "spearman", rows) == 0.0
    assert value(MARKS, "quadratic_weighted_kappa", [("3", "3")] * 3) == 1.0


@given(st.lists(st.tuples(marks, st.one_of(st.none(), marks)), min_size=1, max_size=20))
def test_a_missing_number_counts_as_the_far_end(rows: list[tuple[str, str | None]]) -> None:
    filled = [(gold, predicted or ("0" if gold in "345" else "5")) for gold, predicted in rows]
    for metric in ("rmse", "mae", "pearson", "spearman", "quadratic_weighted_kappa"):
        assert value(MARKS, metric, rows) == pytest.approx(value(MARKS, metric, filled))


def test_a_cut_number_is_not_the_number() -> None:
    assert MARKS.uncut("1") == ""
    assert scale(0, 100).uncut("37\n4") == "37"


def test_problem_for() -> None:
    config = RegressionConfig.model_validate({"kind": "regression", "low": 0, "high": 1})
    assert isinstance(problem_for(config), Regression)
