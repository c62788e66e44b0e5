"""The ids of the rows read so far, with the place of each, in 24 bytes a row."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NUMBER_BITS = 40


class _Run(NamedTuple):
    """Some ids as digests of 128 bits, of which 10^9 are alike with a probability of 10^-21."""

    high: NDArray[np.uint64]
    """One half of each digest, in ascending order."""
    low: NDArray[np.uint64]
    places: NDArray[np.int64]

    def ordered(self) -> "_Run":
        order = np.argsort(self.high, kind="stable")  # which merges parts that are in order
        return _Run(self.high[order], self.low[order], self.places[order])

    def merged(self, other: "_Run") -> "_Run":
        high, low = np.concatenate([self.high, other.high]), np.concatenate([self.low, other.low])
        return _Run(high, low, np.concatenate([self.places, other.places])).ordered()

    def places_of(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The place of each digest, -1 if it is not here."""
        at = np.searchsorted(self.high, high)
        found = np.full(len(high), -1, dtype=np.int64)
        for number in np.flatnonzero(self.high[np.minimum(at, len(self.high) - 1)] == high).tolist():
            end = np.searchsorted(self.high, high[number], side="right")
            same = np.flatnonzero(self.low[at[number] : end] == low[number])
            if len(same):
                found[number] = self.places[at[number] + same[0]]
        return found


class SeenIds:
    """Looked up and added in batches. Runs of ids are merged as they grow, so that there are few."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        """Each at least twice as long as the next."""
        self._files: list[str] = []

    def first_places(self, ids: Sequence[str]) -> list[str | None]:
        """Where the row with each id is; None if there is none yet."""
        high, low = _digests(ids)
        order = np.argsort(high)  # neighbours are looked up one after the other
        found = np.full(len(ids), -1, dtype=np.int64)
        for run in self._runs:
            found[order] = np.maximum(found[order], run.places_of(high[order], low[order]))
        return [None if code < 0 else self._place(code) for code in found.tolist()]

    def add(self, ids: Sequence[str], places: Sequence[str]) -> None:
        """`ids` are new, and all different; a place is a file and, after a space, a number."""
        if not ids:
            return
        codes = np.array([self._code(place) for place in places], dtype=np.int64)
        run = _Run(*_digests(ids), codes).ordered()
        while self._runs and len(self._runs[-1].high) < 2 * len(run.high):
            run = self._runs.pop().merged(run)
        self._runs.append(run)

    def _code(self, place: str) -> int:
        file, _, number = place.rpartition(" ")
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        return ((len(self._files) - 1) << _NUMBER_BITS) + int(number)

    def _place(self, code: int) -> str:
        index, number = divmod(code, 1 << _NUMBER_BITS)
        return f"{self._files[index]} {number}"


def _digests(ids: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Both halves of each id's digest."""
    digests = b"".join(blake2b(one.encode(errors="surrogatepass"), digest_size=16).digest() for one in ids)
    halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()
