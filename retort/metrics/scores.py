"""Scores of predicted labels against gold labels."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from retort.config import ERRORS, Metric
from retort.errors import DataError
from retort.metrics.bootstrap import OfRows, Value, bootstrap, bootstrap_mean
from retort.metrics.ranks import rank_correlation
from retort.problems.base import Floats, Problem
from retort.records.base import Label, Score


def statistics_of(
    problem: Problem, metric: Metric, golds: Iterable[Label], predictions: Iterable[Label | None]
) -> Floats:
    """Each row's contribution to the metric's sums, `(n, d)`. Raises DataError if there are no rows."""
    (statistics,) = all_statistics(problem, [metric], golds, predictions).values()
    return statistics


def all_statistics(
    problem: Problem, metrics: Sequence[Metric], golds: Iterable[Label], predictions: Iterable[Label | None]
) -> dict[Metric, Floats]:
    """Each row's contribution to the sums of each metric, `(n, d)`. Raises DataError if there are no rows.

    All metrics of a row are computed in succession, so that a problem which caches decoded labels decodes each once.
    Rows are streamed into one array, so that a million rows never become a million arrays.
    """
    rows = zip(golds, predictions, strict=True)
    first = next(rows, None)
    if first is None:
        raise DataError(f"there are no gold-labeled rows to compute {', '.join(metrics)} on")
    widths = [len(problem.statistics(metric, *first)) for metric in metrics]

    def sums() -> Iterator[Floats]:
        for gold, label in chain([first], rows):
            yield np.concatenate([problem.statistics(metric, gold, label) for metric in metrics])

    together = np.fromiter(sums(), dtype=np.dtype((np.float64, sum(widths))))
    parts = np.split(together, np.cumsum(widths)[:-1], axis=1)
    return {metric: np.ascontiguousarray(part) for metric, part in zip(metrics, parts, strict=True)}


def value_of(problem: Problem, metric: Metric) -> Value:
    """How the metric follows from the rows' statistics."""
    if metric == "spearman":
        return OfRows(rank_correlation)
    return lambda sums: problem.value(metric, sums)


def merit_of(problem: Problem, metric: Metric) -> Value:
    """`value_of` with its sign turned for `ERRORS`: more is better. Whatever compares systems compares this."""
    if metric in ERRORS:
        return lambda sums: -problem.value(metric, sums)
    return value_of(problem, metric)


def score(
    problem: Problem,
    metric: Metric,
    golds: Iterable[Label],
    predictions: Iterable[Label | None],
    resamples: int,
    seed: int,
) -> Score:
    """The metric's value with its 95 % bootstrap interval. A prediction of None counts as wrong."""
    return score_of(problem, metric, statistics_of(problem, metric, golds, predictions), resamples, seed)


def score_of(problem: Problem, metric: Metric, statistics: Floats, resamples: int, seed: int) -> Score:
    """The metric's value with its 95 % bootstrap interval, from row statistics `(n, d)`."""
    value, low, high = bootstrap(statistics, value_of(problem, metric), resamples, seed)
    return Score(metric=metric, value=value, low=low, high=high, n=len(statistics))


def mean_score(
    problem: Problem,
    metric: Metric,
    golds: Sequence[Label],
    systems: Iterable[Sequence[Label | None]],
    resamples: int,
    seed: int,
) -> Score:
    """The mean score of several systems on the same rows, with its 95 % bootstrap interval."""
    statistics = [statistics_of(problem, metric, golds, predictions) for predictions in systems]
    value, low, high = bootstrap_mean(statistics, value_of(problem, metric), resamples, seed)
    return Score(metric=metric, value=value, low=low, high=high, n=len(golds))
