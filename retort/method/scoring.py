"""From labels to scores."""

from collections.abc import Iterable, Sequence

import numpy as np

from retort.config import Metric
from retort.errors import DataError
from retort.method.significance import bootstrap, bootstrap_mean
from retort.problems.base import Floats, Problem
from retort.records import Label, Score


def statistics_of(
    problem: Problem, metric: Metric, golds: Iterable[Label], predictions: Iterable[Label | None]
) -> Floats:
    """What each row adds to the metric's sums, `(n, d)`. Raises DataError where there are no rows."""
    rows = [problem.statistics(metric, gold, label) for gold, label in zip(golds, predictions, strict=True)]
    if not rows:
        raise DataError(f"there are no gold-labelled rows to compute {metric} on")
    return np.stack(rows)


def score(
    problem: Problem,
    metric: Metric,
    golds: Iterable[Label],
    predictions: Iterable[Label | None],
    resamples: int,
    seed: int,
) -> Score:
    """The metric with its 95 % bootstrap interval. A prediction of None counts as wrong."""
    statistics = statistics_of(problem, metric, golds, predictions)
    value, low, high = bootstrap(statistics, lambda sums: problem.value(metric, sums), resamples, seed)
    return Score(metric=metric, value=value, low=low, high=high, n=len(statistics))


def mean_score(
    problem: Problem,
    metric: Metric,
    golds: Sequence[Label],
    systems: Iterable[Sequence[Label | None]],
    resamples: int,
    seed: int,
) -> Score:
    """The mean of several systems' scores on the same rows, with the interval of that mean."""
    statistics = [statistics_of(problem, metric, golds, predictions) for predictions in systems]
    value, low, high = bootstrap_mean(statistics, lambda sums: problem.value(metric, sums), resamples, seed)
    return Score(metric=metric, value=value, low=low, high=high, n=len(golds))
