"""Comparison of two groups of systems that labeled the same rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.config import Metric
from retort.metrics.bootstrap import Comparison, McNemar, Statistics, compare, mcnemar
from retort.metrics.scores import merit_of, statistics_of
from retort.problems.base import Problem
from retort.records.base import Label

Labels = Sequence[Label | None]
"""One system's labels, in the order of the rows; None counts as wrong."""


class Duel(NamedTuple):
    comparison: Comparison
    """Paired bootstrap of the sides' mean scores. A gain is an improvement: of `ERRORS`, how much less they are."""
    mcnemar: McNemar
    """McNemar's test on whole labels: an answer is right if it matches the gold label. With k systems on each side, its
    rows are those of the k pairs (old i, new i), concatenated. The k answers to a row are treated as independent, so
    the p-value is then too small rather than too large."""


def compare_systems(
    problem: Problem,
    metric: Metric,
    golds: Sequence[Label],
    old: Sequence[Labels],
    new: Sequence[Labels],
    resamples: int,
    seed: int,
) -> Duel:
    """Compares `old` and `new` systems by `metric`. Raises DataError if there are no rows, or a side has no system."""

    def statistics(systems: Sequence[Labels]) -> list[Statistics]:
        return [statistics_of(problem, metric, golds, labels) for labels in systems]

    comparison = compare(statistics(old), statistics(new), merit_of(problem, metric), resamples, seed)
    pairs = list(zip(old, new, strict=True))
    only = mcnemar(
        np.concatenate([_right(problem, golds, one) for one, _ in pairs]),
        np.concatenate([_right(problem, golds, other) for _, other in pairs]),
    )
    return Duel(comparison, only)


def _right(problem: Problem, golds: Sequence[Label], labels: Labels) -> NDArray[np.bool_]:
    return np.array([problem.matches(gold, label) for gold, label in zip(golds, labels, strict=True)])
