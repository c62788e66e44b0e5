"""Intervals and comparisons: known numbers, coverage, pairing."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, spearmanr

from retort.config import Metric, RegressionConfig
from retort.errors import DataError
from retort.metrics import scores
from retort.metrics.bootstrap import OneHot, bootstrap, compare, mcnemar, share_above
from retort.metrics.comparison import Systems, compare_systems
from retort.metrics.scores import mean_scores, score, statistics_of, value_of
from retort.problems.base import Floats
from retort.problems.classification import Classification
from retort.problems.multi_label import MultiLabel
from retort.problems.regression import Regression


def share(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def answers(correct: object) -> Floats:
    """Statistics `(n, 2)` of accuracy."""
    right = np.asarray(correct, dtype=np.float64)
    return np.stack([right, np.ones_like(right)], axis=1)


def test_the_interval_is_the_binomial_one() -> None:
    value, low, high = bootstrap(answers(np.arange(1000) < 800), share, 4000, seed=0)
    assert value == 0.8
    assert (low, high) == pytest.approx((0.775, 0.8245), abs=0.002)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, low, high = bootstrap(answers(generator.random(150) < 0.7), share, 300, seed)
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_it_repeats_and_neither_the_order_nor_the_chunks_of_rows_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = answers(np.random.default_rng(1).random(50))
    first = bootstrap(rows, share, 200, seed=3)
    assert bootstrap(rows, share, 200, seed=3) == first
    assert bootstrap(rows[::-1], share, 200, seed=3) == pytest.approx(first, abs=1e-12)
    assert bootstrap(rows, share, 200, seed=4) != first
    monkeypatch.setattr("retort.metrics.bootstrap.CHUNK", 7)
    assert bootstrap(rows, share, 200, seed=3) == pytest.approx(first, abs=1e-12)


def test_one_row_and_no_rows() -> None:
    assert bootstrap(answers([1]), share, 100, seed=0) == (1.0, 1.0, 1.0)
    with pytest.raises(DataError, match="no rows"):
        bootstrap(np.empty((0, 2)), share, 100, seed=0)
    with pytest.raises(DataError, match="no rows"):
        compare([np.empty((0, 2))], [np.empty((0, 2))], share, 100, seed=0)


def test_a_comparison_is_paired() -> None:
    generator = np.random.default_rng(2)
    old = generator.random(400) < 0.5
    new = old | (np.arange(400) % 40 == 0)  # never worse: pairing must see it where the intervals overlap widely
    comparison = compare([answers(old)], [answers(new)], share, 1000, seed=0)
    assert comparison.gain == pytest.approx(new.mean() - old.mean())
    assert comparison.win_share > 0.95
    assert comparison.low >= 0


def test_equal_systems_tie_in_every_resample_in_any_order() -> None:
    generator = np.random.default_rng(5)
    systems = [answers(generator.random(60) < 0.7) for _ in range(3)]
    comparison = compare(systems, systems[::-1], share, 300, seed=0)
    assert comparison.win_share == 0.5
    assert (comparison.gain, comparison.low, comparison.high) == pytest.approx((0, 0, 0))


def test_a_side_is_the_mean_of_its_systems() -> None:
    old = [answers([1, 1, 0, 0]), answers([0, 0, 0, 0])]
    new = [answers([1, 1, 1, 1])]
    comparison = compare(old, new, share, 100, seed=0)
    assert comparison.gain == pytest.approx(0.75)
    assert (comparison.win_share, comparison.resamples) == (1.0, 100)
    swapped = compare(new, old, share, 100, seed=0)
    assert (swapped.gain, swapped.win_share) == (pytest.approx(-0.75), 0.0)


def test_systems_on_different_rows_are_refused() -> None:
    with pytest.raises(DataError, match="different numbers of rows"):
        compare([answers([1, 0])], [answers([1])], share, 100, seed=0)
    with pytest.raises(DataError, match="at least one system"):
        compare([], [answers([1])], share, 100, seed=0)


def test_mcnemar_by_hand() -> None:
    old = np.array([True, False, False, False, False, False, True])
    new = np.array([False, True, True, True, True, True, True])
    result = mcnemar(old, new)
    assert (result.only_old, result.only_new) == (1, 5)
    assert result.p_value == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(old, old) == (0, 0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_the_binomial_test(rows: list[tuple[bool, bool]]) -> None:
    old, new = np.array(rows).T
    result = mcnemar(old, new)
    disagreements = result.only_old + result.only_new
    expected = binomtest(result.only_new, disagreements).pvalue if disagreements else 1.0
    assert result.p_value == pytest.approx(expected)


def test_a_score_counts_missing_predictions_as_wrong() -> None:
    problem = Classification(["a", "b"])
    result = score(problem, "accuracy", ["a", "b", "a", "b"], ["a", "b", "b", None], resamples=200, seed=0)
    assert (result.metric, result.value, result.n) == ("accuracy", 0.5, 4)
    assert 0 <= result.low <= 0.5 <= result.high <= 1
    assert statistics_of(problem, "macro_f1", ["a"], [None]).shape == (1, 6)
    with pytest.raises(DataError, match="no gold-labeled rows to compute accuracy on"):
        score(problem, "accuracy", [], [], resamples=200, seed=0)


def test_a_mean_score_is_the_mean_of_its_systems_scores() -> None:
    problem = Classification(["a", "b"])
    metrics: tuple[Metric, ...] = ("accuracy", "macro_f1")
    results = mean_scores(problem, metrics, ["a", "b"], [["a", "b"], ["b", None]], resamples=200, seed=0)
    assert (results["accuracy"].value, results["accuracy"].n) == (0.5, 2)
    alone = mean_scores(problem, metrics, ["a", "b"], [["a", "a"]], resamples=200, seed=0)
    assert alone == {
        metric: score(problem, metric, ["a", "b"], ["a", "a"], resamples=200, seed=0) for metric in metrics
    }


def test_a_tie_is_half_a_win_and_no_gain_above_the_margin() -> None:
    same = [answers([1, 0])]
    assert compare(same, same, share, 100, 0).win_share == 0.5
    assert share_above(same, same, share, 0.0, 100, 0) == 0.0
    assert share_above(same, same, share, -0.01, 100, 0) == 1.0


def classified(classes: int, rows: int, seed: int = 0) -> tuple[Classification, list[str], list[str | None]]:
    """(problem, gold labels, predictions that are right in 2 of 3 rows, and missing in some)"""
    generator = np.random.default_rng(seed)
    names = [f"class {number}" for number in range(classes)]
    golds = [names[number] for number in generator.integers(classes, size=rows)]
    others = [names[number] for number in generator.integers(classes, size=rows)]
    luck = generator.random(rows)
    pairs = zip(golds, others, luck, strict=True)
    return (
        Classification(names),
        golds,
        [None if one < 0.05 else gold if one < 0.7 else other for gold, other, one in pairs],
    )


@pytest.mark.parametrize("metric", ["macro_f1", "quadratic_weighted_kappa"])
def test_cells_of_a_confusion_matrix_are_what_dense_rows_are(metric: Metric) -> None:
    problem, golds, old = classified(6, 80)
    new = classified(6, 80, seed=1)[2]
    cells = [statistics_of(problem, metric, golds, labels) for labels in (old, new)]
    dense = [np.stack([problem.statistics(metric, *row) for row in zip(golds, of, strict=True)]) for of in (old, new)]
    value = value_of(problem, metric)
    for one, other in zip(cells, dense, strict=True):
        assert isinstance(one, OneHot)
        np.testing.assert_array_equal(one.dense(), other)
        assert bootstrap(one, value, 300, seed=1) == bootstrap(other, value, 300, seed=1)
    assert compare(cells[:1], cells[1:], value, 300, seed=1) == compare(dense[:1], dense[1:], value, 300, seed=1)


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "jaccard", "exact_match"])
def test_booleans_are_what_floats_are(monkeypatch: pytest.MonkeyPatch, metric: Metric) -> None:
    """Sets of 4 classes: only rows of 0 and 1 are kept as booleans, and they give the same intervals."""
    monkeypatch.setattr(scores, "_CHUNK_NUMBERS", 24)
    problem, generator = MultiLabel("abcd", ","), np.random.default_rng(0)
    golds, *systems = (
        [json.dumps([name for name in "abcd" if generator.random() < 0.4]) for _ in range(90)] for _ in range(3)
    )
    found = [statistics_of(problem, metric, golds, labels) for labels in systems]
    floats = [np.stack([problem.statistics(metric, *row) for row in zip(golds, of, strict=True)]) for of in systems]
    value = value_of(problem, metric)
    for one, other in zip(found, floats, strict=True):
        assert not isinstance(one, OneHot)
        assert one.dtype == (np.bool_ if metric in ("macro_f1", "exact_match") else np.float64)
        np.testing.assert_array_equal(one, other)
        assert bootstrap(one, value, 300, seed=1) == bootstrap(other, value, 300, seed=1)
    assert compare(found[:1], found[1:], value, 300, seed=1) == compare(floats[:1], floats[1:], value, 300, seed=1)


def test_ranks_of_zeros_and_ones_are_those_of_numbers() -> None:
    problem = Regression(RegressionConfig(kind="regression", low=0, high=1, step=1))
    golds, labels = ["0", "1", "1", "0", "1"], ["0", "1", "0", "0", "1"]
    found = score(problem, "spearman", golds, labels, 300, seed=0)
    assert found.value == pytest.approx(spearmanr([0, 1, 1, 0, 1], [0, 1, 0, 0, 1]).statistic)


def test_many_classes_take_no_matrix_for_each_row() -> None:
    """150 classes in 4,500 rows took 2.6 GB."""
    problem, golds, labels = classified(150, 4500)
    tracemalloc.start()
    found = score(problem, "macro_f1", golds, labels, 200, seed=0)
    systems = Systems(problem, ["macro_f1"], golds, [labels])
    compare_systems(systems, systems, "macro_f1", 200, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.low < found.value < found.high
    assert peak < 200e6
