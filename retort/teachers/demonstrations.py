"""Selects the labeled rows that a teacher is shown as demonstrations."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retort.records.base import Example

_CHUNK_ROWS = 512
"""Rows whose distances to all other rows are in memory at once."""


def choose_demonstrations(
    examples: Sequence[Example], how_many: int | Literal["all"], choose: Literal["diverse", "first"]
) -> tuple[Example, ...]:
    """Select `how_many` of the labeled examples, or all of them in their order if there are no more.

    diverse: farthest-first traversal (Gonzalez 1985), a 2-approximation of the k-center problem, under the Jaccard
    distance between word sets. It starts with the example closest to all others; each next one is, among the labels
    shown least so far, the example farthest from those already chosen. So every class appears early; for slots, where
    nearly every label is unique, the distance decides. Neither the selection nor its order depends on the order of
    `examples`.
    """
    if how_many == "all" or how_many >= len(examples):
        return tuple(examples)
    if choose == "first" or how_many == 0:
        return tuple(examples[:how_many])
    ordered = sorted(examples, key=lambda example: (example.text, example.label or "", example.example_id))
    return tuple(ordered[index] for index in _farthest_first(ordered, how_many))


def _farthest_first(examples: Sequence[Example], how_many: int) -> list[int]:
    words = _word_sets([example.text for example in examples])
    labels = np.unique([example.label or "" for example in examples], return_inverse=True)[1]
    shown = np.zeros(labels.max() + 1, dtype=np.int64)
    nearest = np.full(len(examples), np.inf)  # distance to the nearest chosen one; -inf once chosen
    chosen: list[int] = []
    index = _closest_to_all(words)
    while True:
        chosen.append(index)
        if len(chosen) == how_many:
            return chosen
        shown[labels[index]] += 1
        nearest = np.minimum(nearest, _distances(words, words[[index]])[0])
        nearest[index] = -np.inf
        times = np.where(np.isfinite(nearest), shown[labels], len(examples))
        index = int(np.where(times == times.min(), nearest, -np.inf).argmax())


def _word_sets(texts: Sequence[str]) -> Any:
    """A sparse 0/1 matrix `(n, words)`; words are split at white space and compared without case."""
    from scipy.sparse import csr_array

    numbers: dict[str, int] = {}
    sets = [{numbers.setdefault(word, len(numbers)) for word in text.casefold().split()} for text in texts]
    columns = [number for words in sets for number in sorted(words)]
    starts = np.cumsum([0, *(len(words) for words in sets)])
    return csr_array((np.ones(len(columns)), columns, starts), shape=(len(texts), max(len(numbers), 1)))


def _distances(words: Any, some: Any) -> NDArray[np.float64]:
    """Jaccard distances `(some, n)` in [0, 1]: 1 - |intersection| / |union|; 0 between two texts without words."""
    shared = (some @ words.T).toarray()
    either = some.sum(axis=1)[:, None] + words.sum(axis=1)[None] - shared
    return np.asarray(1.0 - np.divide(shared, either, out=np.ones_like(shared), where=either > 0))


def _closest_to_all(words: Any) -> int:
    totals = [
        _distances(words, words[start : start + _CHUNK_ROWS]).sum(axis=1)
        for start in range(0, words.shape[0], _CHUNK_ROWS)
    ]
    return int(np.concatenate(totals).argmin())
