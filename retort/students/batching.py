"""Batches of rows of similar length, bounded by their number of tokens, padding included."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

WINDOW_ROWS = 8192
"""Rows that are sorted by length together in prediction; bounds memory, whatever the pool's size."""


def token_batches(
    lengths: NDArray[np.int64], budget_tokens: int, generator: np.random.Generator | None = None
) -> list[Indices]:
    """Splits the rows, sorted by length, into batches with `rows x longest <= budget_tokens` (at least one row each).

    `lengths` is `(rows,)`, or `(rows, sides)` if a row has several sequences that are padded separately: rows are then
    sorted by their total length, and a batch costs the sum of the longest sequence of each side.
    With a generator, rows of equal length and then the batches are shuffled, so that epochs differ. Without one, the
    longest come first, so that a batch that does not fit memory fails at once.
    """
    sides = lengths if lengths.ndim == 2 else lengths[:, None]
    keys = (sides[:, 0], sides.sum(axis=1)) if sides.shape[1] > 1 else (sides[:, 0],)
    if generator is None:
        order = np.lexsort([-key for key in keys])
    else:
        order = np.lexsort((generator.random(len(lengths)), *keys))
    batches, start = [], 0
    while start < len(order):
        cost = int(sides[order[start]].sum())  # the later rows of a batch cost at least as much
        most = budget_tokens // cost + 1 if cost else len(order)
        longest = np.maximum.accumulate(sides[order[start : start + most]], axis=0).sum(axis=1)
        costs = longest * np.arange(1, len(longest) + 1)
        stop = start + max(1, int(np.searchsorted(costs, budget_tokens, side="right")))
        batches.append(order[start:stop])
        start = stop
    if generator is not None:
        generator.shuffle(batches)
    return batches


def packed_batches(lengths: NDArray[np.int64], budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
    """Shuffles the rows and splits them into batches of at most `budget_tokens` in all (at least one row each)."""
    batches: list[Indices] = []
    order = generator.permutation(len(lengths))
    held, start = np.cumsum(lengths[order]), 0
    while start < len(order):
        before = held[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(held, before + budget_tokens, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches


def bins_of(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Packs rows into bins of at most `capacity` tokens and returns each bin's indices into `lengths`, `(rows,)`.

    A row longer than `capacity` gets a bin of its own. First-fit decreasing: at most 11/9 of the optimum plus a small
    constant (Johnson 1973).
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        fitting = next((number for number, space in enumerate(free) if space >= length), None)
        if fitting is None:
            bins.append([place])
            free.append(capacity - length)
        else:
            bins[fitting].append(place)
            free[fitting] -= length
    return bins
