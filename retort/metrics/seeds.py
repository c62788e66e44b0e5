"""Means and paired differences of scores over random seeds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.records.base import Record


class SeedScore(Record):
    """The mean of a score over seeds."""

    mean: float
    low: float
    """Lower end of the mean's 95 % interval by Student's t over seeds; the mean itself if there is one seed."""
    high: float
    """Upper end of that interval."""
    values: tuple[float, ...]
    """The score of each seed."""


def over_seeds(values: Sequence[float]) -> SeedScore:
    """The mean of `values` and its 95 % interval. Raises DataError if there are none."""
    if not len(values):
        raise DataError("there is no seed to average over")
    mean = float(np.mean(values))
    half = _half_width(np.asarray(values, dtype=np.float64)) if len(values) > 1 else 0.0
    return SeedScore(mean=mean, low=mean - half, high=mean + half, values=tuple(float(one) for one in values))


def paired(old: Sequence[float], new: Sequence[float]) -> SeedScore:
    """`new - old` seed by seed; a side with a single value is compared with every seed of the other."""
    differences = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    return over_seeds(differences.tolist())


def _half_width(values: NDArray[np.float64]) -> float:
    """Half the width of the 95 % confidence interval of the mean, by Student's t."""
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
