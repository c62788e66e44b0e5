"""Rank correlation under weights, and which direction is better where systems are compared."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from retort.config import Metric, RegressionConfig
from retort.metrics.bootstrap import OfRows, bootstrap
from retort.metrics.comparison import Systems, compare_systems
from retort.metrics.ranks import rank_correlation
from retort.metrics.scores import score
from retort.problems.regression import Regression

PROBLEM = Regression(RegressionConfig(kind="regression", low=0, high=10))


def test_a_weight_is_a_number_of_rows() -> None:
    generator = np.random.default_rng(0)
    rows = np.stack([generator.integers(0, 6, 40), generator.integers(0, 9, 40)], axis=1).astype(float)
    weights = generator.multinomial(40, np.full(40, 1 / 40), size=25).astype(float)
    found = rank_correlation(weights, rows)
    for weight, correlation in zip(weights, found, strict=True):
        repeated = np.repeat(rows, weight.astype(int), axis=0)
        assert correlation == pytest.approx(spearmanr(repeated[:, 0], repeated[:, 1]).statistic)


def test_its_interval_is_that_of_resampled_rows() -> None:
    generator = np.random.default_rng(1)
    gold = generator.normal(size=300)
    rows = np.stack([gold, gold + generator.normal(size=300)], axis=1)
    value, low, high = bootstrap(rows, OfRows(rank_correlation), 1000, seed=0)
    drawn = [rows[generator.integers(0, 300, 300)] for _ in range(1000)]
    again = np.quantile([spearmanr(one[:, 0], one[:, 1]).statistic for one in drawn], (0.025, 0.975))
    assert value == pytest.approx(spearmanr(rows[:, 0], rows[:, 1]).statistic)
    assert (low, high) == pytest.approx(tuple(again), abs=0.015)


@pytest.mark.parametrize("metric", ["rmse", "mae", "pearson", "spearman", "quadratic_weighted_kappa"])
def test_the_better_system_gains_by_every_metric(metric: Metric) -> None:
    generator = np.random.default_rng(2)
    truth = generator.uniform(1, 9, 80)
    golds, good, bad = (
        [f"{one:.4f}" for one in np.clip(truth + generator.normal(0, noise, 80), 0, 10)] for noise in (0, 0.3, 2)
    )
    old, new = (Systems(PROBLEM, [metric], golds, [labels]) for labels in (bad, good))
    better, worse = compare_systems(old, new, metric, 200, 0), compare_systems(new, old, metric, 200, 0)
    assert better.gain > 0
    assert better.low > 0
    assert better.win_share == 1.0
    assert (worse.gain, worse.win_share) == (pytest.approx(-better.gain), 0.0)
    own = score(PROBLEM, metric, golds, good, 200, 0)
    assert own.low <= own.value <= own.high
    assert own.value > 0
