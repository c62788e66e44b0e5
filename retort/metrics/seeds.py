"""Scores of the same thing trained from several seeds, and differences of two such, paired by seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.records.base import Record


class SeedScore(Record):
    """A score's mean over seeds."""

    mean: float
    low: float
    """Lower end of the mean's 95 % interval, Student's t over the seeds; the mean itself where there is one seed."""
    high: float
    values: tuple[float, ...]
    """Of each seed."""


def over_seeds(values: Sequence[float]) -> SeedScore:
    """Mean and interval. Raises DataError where there are none."""
    if not len(values):
        raise DataError("there is no seed to average over")
    mean = float(np.mean(values))
    half = _half_width(np.asarray(values, dtype=np.float64)) if len(values) > 1 else 0.0
    return SeedScore(mean=mean, low=mean - half, high=mean + half, values=tuple(float(one) for one in values))


def paired(old: Sequence[float], new: Sequence[float]) -> SeedScore:
    """`new - old`, seed by seed; where one side has a single value, it is that of every seed."""
    differences = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    return over_seeds(differences.tolist())


def _half_width(values: NDArray[np.float64]) -> float:
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
