"""Scores of predicted labels against gold labels."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.config import ERRORS, Metric
from retort.errors import DataError
from retort.metrics.bootstrap import OfRows, OneHot, Statistics, Value, bootstrap_mean
from retort.metrics.ranks import rank_correlation
from retort.problems.base import Floats, HasCells, Problem
from retort.records.base import Label, Score


def statistics_of(
    problem: Problem, metric: Metric, golds: Iterable[Label], predictions: Iterable[Label | None]
) -> Statistics:
    """Each row's contribution to the metric's sums, `(n, d)`. Raises DataError if there are no rows."""
    return _gathered(problem, [metric], golds, predictions).of(metric)


_CHUNK_NUMBERS = 1 << 20
_BITS_OF_ONE = int(np.float64(1).view(np.int64))


class _Numbers:
    """Rows of numbers that are added one by one. Those of which all are 0 or 1, as counts of right and wrong classes
    are, take a byte a number."""

    def __init__(self) -> None:
        self._recent = array("d")
        self._before: list[NDArray[Any]] = []

    def add(self, row: Floats) -> None:
        self._recent.frombytes(row.tobytes())
        if len(self._recent) >= _CHUNK_NUMBERS:
            self._pack()

    def rows(self, count: int) -> Floats | NDArray[np.bool_]:
        """All of them, `(count, d)`: booleans if all are 0 or 1."""
        self._pack()
        self._before = [np.concatenate(self._before)]
        return self._before[0].reshape(count, -1)

    def _pack(self) -> None:
        recent = np.array(self._recent, dtype=np.float64)
        bits = recent.view(np.int64)  # by their bits, as -0, which is equal to 0, sorts elsewhere
        has_two = ((bits == 0) | (bits == _BITS_OF_ONE)).all()
        self._before.append(recent.astype(np.bool_) if has_two else recent)
        self._recent = array("d")


class RowStatistics:
    """Each row's contribution to the sums of some metrics, from rows that are added one by one and not kept.

    All metrics of a row are computed in succession, so that a problem which caches decoded labels decodes each once.
    """

    def __init__(self, problem: Problem, metrics: Sequence[Metric]) -> None:
        self._problem = problem
        cells = problem.cell_metrics if isinstance(problem, HasCells) else ()
        self._dense = {metric: _Numbers() for metric in metrics if metric not in cells}
        self._cells = {metric: array("i") for metric in metrics if metric in cells}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, gold: Label, predicted: Label | None) -> None:
        """A `predicted` of None counts as wrong."""
        for metric, numbers in self._dense.items():
            numbers.add(np.asarray(self._problem.statistics(metric, gold, predicted), dtype=np.float64))
        if self._cells:
            assert isinstance(self._problem, HasCells), "only then there are such metrics"
            cell = self._problem.cell(gold, predicted)
            for places in self._cells.values():
                places.append(cell)
        self._count += 1

    def of(self, metric: Metric) -> Statistics:
        """`(n, d)`. Raises DataError if there are no rows."""
        if not self._count:
            raise DataError(f"there are no gold-labeled rows to compute {metric} on")
        if metric in self._dense:
            return self._dense[metric].rows(self._count)
        assert isinstance(self._problem, HasCells), "only then there are such metrics"
        return OneHot(np.frombuffer(self._cells[metric], dtype=np.int32), self._problem.num_cells)


def _gathered(
    problem: Problem, metrics: Sequence[Metric], golds: Iterable[Label], predictions: Iterable[Label | None]
) -> RowStatistics:
    statistics = RowStatistics(problem, metrics)
    for gold, predicted in zip(golds, predictions, strict=True):
        statistics.add(gold, predicted)
    return statistics


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


def score_of(problem: Problem, metric: Metric, statistics: Statistics, resamples: int, seed: int) -> Score:
    """The metric's value with its 95 % bootstrap interval, from row statistics `(n, d)`."""
    return mean_score_of(problem, metric, [statistics], resamples, seed)


def mean_scores(
    problem: Problem,
    metrics: Sequence[Metric],
    golds: Sequence[Label],
    systems: Iterable[Iterable[Label | None]],
    resamples: int,
    seed: int,
) -> dict[Metric, Score]:
    """The mean scores of several systems on the same rows, with their 95 % bootstrap intervals."""
    gathered = [_gathered(problem, metrics, golds, predictions) for predictions in systems]
    return mean_scores_of(problem, metrics, gathered, resamples, seed)


def mean_scores_of(
    problem: Problem, metrics: Sequence[Metric], systems: Sequence[RowStatistics], resamples: int, seed: int
) -> dict[Metric, Score]:
    """See `mean_scores`."""
    return {
        metric: mean_score_of(problem, metric, [own.of(metric) for own in systems], resamples, seed)
        for metric in metrics
    }


def mean_score_of(problem: Problem, metric: Metric, systems: Sequence[Statistics], resamples: int, seed: int) -> Score:
    """The mean score of systems, each of row statistics `(n, d)`, with its 95 % bootstrap interval."""
    value, low, high = bootstrap_mean(systems, value_of(problem, metric), resamples, seed)
    return Score(metric=metric, value=value, low=low, high=high, n=len(systems[0]))
