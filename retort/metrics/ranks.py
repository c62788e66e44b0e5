"""Spearman's rank correlation of weighted rows, for the bootstrap: a resample changes the ranks of all rows, so it is
no function of sums over rows."""

import numpy as np

from retort.problems.base import Floats, ratio

_NO_SPREAD = 1e-12
"""A variance of ranks below this share of its greatest is rounding."""


def rank_correlation(weights: Floats, rows: Floats) -> Floats:
    """Row weights `(..., n)` and pairs `(n, 2)` -> Spearman's correlation `(...)` in [-1, 1] of the rows, each repeated
    as often as its weight says; equal values have their mean rank (Kendall 1945). 0 if either side does not vary."""
    total = np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
    shares = weights / total
    one, other = (_ranks(shares, rows[:, side]) for side in (0, 1))
    # The mean of mean ranks, as shares of the rows, is a half.
    covariance = (shares * (one - 0.5) * (other - 0.5)).sum(axis=-1)
    variances = [(shares * (ranks - 0.5) ** 2).sum(axis=-1) for ranks in (one, other)]
    varies = (variances[0] > _NO_SPREAD) & (variances[1] > _NO_SPREAD)
    correlation = ratio(covariance, np.sqrt(np.where(varies, variances[0] * variances[1], 0.0)))
    return np.clip(correlation, -1.0, 1.0)


def _ranks(shares: Floats, values: Floats) -> Floats:
    """The share of rows below each row, plus half of that of its equals, `(..., n)`; `values` is `(n,)`."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    firsts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(shares[..., order], firsts, axis=-1)
    middles = np.cumsum(sizes, axis=-1) - sizes / 2
    ranks: Floats = middles[..., group]
    return ranks
