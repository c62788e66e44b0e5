"""Bootstrap intervals of a score, and tests of whether one system beats another on the same rows.

A bootstrap resample is a vector of n row weights, from which and the per-row statistics `(n, d)` a metric is computed:
nearly always from their weighted sums.
Rows with equal statistics are interchangeable: drawing the count of each *distinct* row from a multinomial is
equivalent to drawing n rows, its cost does not grow with n, and the result does not depend on the order of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.problems.base import Floats


@dataclass(frozen=True, slots=True)
class OneHot:
    """Statistics `(n, d)` of which each row has a 1 at one place and 0 elsewhere, such as the cells of a confusion
    matrix; dense, those of 150 classes would take 180 kB a row."""

    places: NDArray[np.int32]
    """`(n,)`"""
    width: int
    """d"""
    __array_ufunc__: ClassVar[None] = None
    """So that arrays leave `@` to this class."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.width

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Any) -> "OneHot":
        return OneHot(self.places[rows], self.width)

    def __rmatmul__(self, weights: Floats) -> Floats:
        """Sums, `(resamples, d)`, by weights `(resamples, n)`."""
        return np.stack([np.bincount(self.places, weights=one, minlength=self.width) for one in weights])

    def sum(self, axis: Literal[0]) -> Floats:
        return np.bincount(self.places, minlength=self.width).astype(np.float64)

    def dense(self) -> Floats:
        return np.eye(self.width)[self.places]


Statistics = Floats | NDArray[np.bool_] | OneHot
"""`(n, d)`, a row for each of the data; booleans are the numbers 0 and 1 in an eighth of the memory."""
OfSums = Callable[[Floats], Floats]
"""Summed statistics `(..., d)` -> the metric `(...)`."""


@dataclass(frozen=True, slots=True)
class OfRows:
    """A metric that is no function of sums."""

    measure: Callable[[Floats, Floats], Floats]
    """Row weights `(..., n)` and statistics `(n, d)`, dense -> the metric `(...)`."""


Value = OfSums | OfRows

TIE = 1e-12
"""Scores that differ by less are equal: the rounding of a mean over systems."""

CHUNK = 4_000_000
"""Number of float64 weights in memory at once (32 MB)."""


class Comparison(NamedTuple):
    """Whether the new systems beat the old."""

    gain: float
    """Mean score of the new systems minus that of the old ones, on all rows."""
    low: float
    """Lower end of the gain's 95 % percentile-bootstrap interval."""
    high: float
    """Upper end of that interval."""
    win_share: float
    """Share of resamples in which the new systems are better, in [0, 1]; a tie counts half."""
    resamples: int


class McNemar(NamedTuple):
    """Exact McNemar test (McNemar 1947) of two systems that are right or wrong on the same rows."""

    only_old: int
    """Number of rows that only the old system gets right."""
    only_new: int
    """Number of rows that only the new system gets right."""
    p_value: float
    """Two-sided: the probability of a split at least this uneven between equals, in [0, 1]; 1 without disagreements."""


def bootstrap(statistics: Statistics, value: Value, resamples: int, seed: int) -> tuple[float, float, float]:
    """(value, low, high): the score of `statistics` `(n, d)` and its 95 % percentile-bootstrap interval over rows.

    Raises DataError if there are no rows.
    """
    return bootstrap_mean([statistics], value, resamples, seed)


def bootstrap_mean(
    systems: Sequence[Statistics], value: Value, resamples: int, seed: int
) -> tuple[float, float, float]:
    """(value, low, high) of the mean score of several systems, each `(n, d)` over the same rows in the same order.

    Each resample takes the same rows of all systems. Raises DataError if there are no rows.
    """
    scores = _resampled(systems, value, resamples, seed).mean(axis=1)
    low, high = np.quantile(scores, (0.025, 0.975))
    return _mean_score(systems, value), float(low), float(high)


def compare(
    old: Sequence[Statistics], new: Sequence[Statistics], value: Value, resamples: int, seed: int
) -> Comparison:
    """Paired bootstrap test (Koehn 2004). Each system is `(n, d)` over the same rows in the same order; each resample
    takes the same rows of all systems; a side's score is the mean over its systems.

    Raises DataError if there are no rows or the systems have different numbers of rows.
    """
    gains = _resampled_gains(old, new, value, resamples, seed)
    ties = np.abs(gains) < TIE
    wins = ((gains > 0) & ~ties) + 0.5 * ties
    low, high = np.quantile(gains, (0.025, 0.975))
    return Comparison(
        _mean_score(new, value) - _mean_score(old, value), float(low), float(high), float(wins.mean()), resamples
    )


def share_above(
    old: Sequence[Statistics], new: Sequence[Statistics], value: Value, margin: float, resamples: int, seed: int
) -> float:
    """Share of `compare`'s resamples, in [0, 1], in which the gain exceeds `margin`; here a tie does not count.

    Raises DataError as `compare` does.
    """
    return float((_resampled_gains(old, new, value, resamples, seed) > margin + TIE).mean())


def mcnemar(old_correct: NDArray[np.bool_], new_correct: NDArray[np.bool_]) -> McNemar:
    """The exact two-sided binomial test on the rows that exactly one system gets right; both arrays are `(n,)`."""
    from scipy.special import bdtr

    only_old = int(np.sum(old_correct & ~new_correct))
    only_new = int(np.sum(new_correct & ~old_correct))
    tail = bdtr(min(only_old, only_new), only_old + only_new, 0.5)
    return McNemar(only_old, only_new, min(1.0, 2.0 * float(tail)))


def _resampled_gains(
    old: Sequence[Statistics], new: Sequence[Statistics], value: Value, resamples: int, seed: int
) -> Floats:
    """Mean score of the new systems minus that of the old ones in each resample, `(resamples,)`."""
    if not old or not new:
        raise DataError("a comparison needs at least one system on each side")
    if len({len(statistics) for statistics in (*old, *new)}) > 1:
        raise DataError("the systems to compare were scored on different numbers of rows")
    scores = _resampled([*old, *new], value, resamples, seed)
    gains: Floats = scores[:, len(old) :].mean(axis=1) - scores[:, : len(old)].mean(axis=1)
    return gains


def value_on(statistics: Statistics, value: Value) -> float:
    """The metric on all rows, of statistics `(n, d)`."""
    if isinstance(value, OfRows):
        assert not isinstance(statistics, OneHot), "such a metric has no cells"
        return float(value.measure(np.ones(len(statistics)), statistics.astype(np.float64)))
    return float(value(statistics.sum(axis=0).astype(np.float64)))


def _mean_score(systems: Sequence[Statistics], value: Value) -> float:
    return float(np.mean([value_on(statistics, value) for statistics in systems]))


def _weighted(weights: Floats, statistics: Floats | OneHot, value: Value) -> Floats:
    """The metric in each resample: weights `(resamples, n)` -> `(resamples,)`."""
    if isinstance(value, OfRows):
        assert not isinstance(statistics, OneHot), "such a metric has no cells"
        return value.measure(weights, statistics)
    return value(weights @ statistics)


def _resampled(systems: Sequence[Statistics], value: Value, resamples: int, seed: int) -> Floats:
    """Scores `(resamples, systems)`, in chunks that bound memory for any n."""
    if not len(systems[0]):
        raise DataError("there are no rows to score")
    distinct, counts = _distinct(systems)
    total = int(counts.sum())
    generator = np.random.default_rng(seed)
    widest = max(len(counts), *(statistics.shape[1] for statistics in systems))
    chunk = max(1, CHUNK // widest)
    scores = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        weights = generator.multinomial(total, counts / total, size=size).astype(np.float64)
        scores.append(np.stack([_weighted(weights, rows, value) for rows in distinct], axis=1))
    return np.concatenate(scores)


def _distinct(systems: Sequence[Statistics]) -> tuple[list[Floats | OneHot], NDArray[np.int64]]:
    """The u distinct joint rows, `(u, d)` for each system, and their counts, `(u,)`."""
    codes = [np.unique(_ordered(statistics), return_inverse=True)[1] for statistics in systems]
    _, first, counts = np.unique(_rows(np.stack(codes, axis=1)), return_index=True, return_counts=True)
    rows = (statistics[first] for statistics in systems)
    return [one if isinstance(one, OneHot) else one.astype(np.float64) for one in rows], counts


def _ordered(statistics: Statistics) -> NDArray[Any]:
    """Values that are equal, and in the same order, where the rows as byte strings are; booleans have floats' order."""
    return -statistics.places if isinstance(statistics, OneHot) else _rows(statistics)


def _rows(matrix: NDArray[Any]) -> NDArray[np.void]:
    """The rows of `(n, d)` as `(n,)` byte strings: `np.unique` sorts them 17 times faster than with `axis=0`."""
    matrix = np.ascontiguousarray(matrix)
    return matrix.view(np.dtype((np.void, matrix.shape[1] * matrix.itemsize))).reshape(-1)
