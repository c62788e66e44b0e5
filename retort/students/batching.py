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
    total = sides.sum(axis=1)
    if generator is None:
        order = np.lexsort((-sides[:, 0], -total))
    else:
        order = np.lexsort((generator.random(len(lengths)), sides[:, 0], total))
    batches, start = [], 0
    longest = np.zeros(sides.shape[1], dtype=np.int64)
    for stop, index in enumerate(order):
        longest = np.maximum(longest, sides[index])
        if stop > start and (stop - start + 1) * longest.sum() > budget_tokens:
            batches.append(order[start:stop])
            start, longest = stop, sides[index]
    if start < len(order):
        batches.append(order[start:])
    if generator is not None:
        generator.shuffle(batches)
    return batches


def packed_batches(lengths: NDArray[np.int64], budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
    """Shuffles the rows and splits them into batches of at most `budget_tokens` in all (at least one row each)."""
    batches: list[Indices] = []
    order = generator.permutation(len(lengths))
    start = held = 0
    for stop, index in enumerate(order):
        if stop > start and held + lengths[index] > budget_tokens:
            batches.append(order[start:stop])
            start, held = stop, 0
        held += int(lengths[index])
    if start < len(order):
        batches.append(order[start:])
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
