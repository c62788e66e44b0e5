"""Batches of rows of similar length, bounded by the tokens that they hold, padding included."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def token_batches(
    lengths: NDArray[np.int64], budget_tokens: int, generator: np.random.Generator | None = None
) -> list[Indices]:
    """Cut the rows, sorted by length, into batches with `rows x longest <= budget_tokens` (one row at least).

    With a generator, rows of equal length are shuffled among each other and then the batches, so that epochs
    differ; without one, the order is by length, longest first (a batch that does not fit memory fails at once).
    """
    if generator is None:
        order = np.argsort(-lengths, kind="stable")
    else:
        order = np.lexsort((generator.random(len(lengths)), lengths))
    batches, start = [], 0
    longest = 0
    for stop, index in enumerate(order):
        longest = max(longest, int(lengths[index]))
        if stop > start and (stop - start + 1) * longest > budget_tokens:
            batches.append(order[start:stop])
            start, longest = stop, int(lengths[index])
    if start < len(order):
        batches.append(order[start:])
    if generator is not None:
        generator.shuffle(batches)
    return batches
