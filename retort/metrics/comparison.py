"""Comparison of two groups of systems that labeled the same rows."""

from collections.abc import Sequence

import numpy as np

from retort.config import Metric
from retort.metrics.bootstrap import Comparison, McNemar, Statistics, compare, mcnemar, share_above
from retort.metrics.scores import RowStatistics, mean_score_of, merit_of
from retort.problems.base import Problem
from retort.records.base import Label, Score

Labels = Sequence[Label | None]
"""One system's labels, in the order of the rows; None counts as wrong."""


class Systems:
    """Systems that labeled the same rows. However many metrics compare them, each label is read once."""

    def __init__(
        self, problem: Problem, metrics: Sequence[Metric], golds: Sequence[Label], labels: Sequence[Labels]
    ) -> None:
        """`labels` are each system's."""
        self.problem = problem
        self.right = np.zeros((len(labels), len(golds)), dtype=np.bool_)
        """`(systems, rows)`: whether a whole label matches the gold one."""
        self._statistics = [RowStatistics(problem, metrics) for _ in labels]
        for statistics, right, own in zip(self._statistics, self.right, labels, strict=True):
            for row, (gold, label) in enumerate(zip(golds, own, strict=True)):
                statistics.add(gold, label)
                right[row] = problem.matches(gold, label)

    @property
    def num_rows(self) -> int:
        return self.right.shape[1]

    def statistics(self, metric: Metric) -> list[Statistics]:
        """Each system's, `(rows, d)`. Raises DataError if there are no rows."""
        return [own.of(metric) for own in self._statistics]

    def score(self, metric: Metric, resamples: int, seed: int) -> Score:
        """The systems' mean score, with its 95 % bootstrap interval."""
        return mean_score_of(self.problem, metric, self.statistics(metric), resamples, seed)


def compare_systems(old: Systems, new: Systems, metric: Metric, resamples: int, seed: int) -> Comparison:
    """Paired bootstrap of the sides' mean scores. A gain is an improvement: of `ERRORS`, how much less they are.

    Raises DataError if there are no rows, or a side has no system.
    """
    merit = merit_of(old.problem, metric)
    return compare(old.statistics(metric), new.statistics(metric), merit, resamples, seed)


def share_of_gains(old: Systems, new: Systems, metric: Metric, margin: float, resamples: int, seed: int) -> float:
    """Share of the resamples of `compare_systems`, in [0, 1], in which the gain exceeds `margin`."""
    merit = merit_of(old.problem, metric)
    return share_above(old.statistics(metric), new.statistics(metric), merit, margin, resamples, seed)


def mcnemar_of(old: Systems, new: Systems) -> McNemar:
    """McNemar's test on whole labels: an answer is right if it matches the gold label. With k systems on each side, its
    rows are those of the k pairs (old i, new i), concatenated. The k answers to a row are treated as independent, so
    the p-value is then too small rather than too large."""
    assert old.right.shape == new.right.shape, "systems are paired"
    return mcnemar(old.right.ravel(), new.right.ravel())
