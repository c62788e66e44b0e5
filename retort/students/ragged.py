"""Arrays of different lengths as one flat array, which is mapped from a temporary file once it is large: memory holds
where each begins, and the system lends the rest as it has room."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 2**24
"""As many stay in memory before a file is begun."""


class Ragged:
    """Arrays `(length, ...)` that differ in nothing but their length. All are written before the first is read."""

    def __init__(self, arrays: Iterable[NDArray[Any]] = ()) -> None:
        self._ends = array("q", [0])
        self._chunk = bytearray()
        self._like: NDArray[Any] = np.empty(0)
        self._file: IO[bytes] | None = None
        self._flat: NDArray[Any] | None = None
        for one in arrays:
            self.append(one)

    def append(self, one: NDArray[Any]) -> None:
        assert self._flat is None, "all is written before the first is read"
        self._ends.append(self._ends[-1] + len(one))
        self._chunk += one.tobytes()
        self._like = one[:0]
        if len(self._chunk) >= CHUNK_BYTES:
            self._write()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> NDArray[Any]:
        """A view. Raises IndexError; places are counted from 0 only."""
        return self.flat[self._ends[place] : self._ends[place + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[place] for place in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(arrays,)`"""
        ends: NDArray[np.int64] = np.frombuffer(self._ends, dtype=np.int64)
        return ends[1:] - ends[:-1]

    @property
    def flat(self) -> NDArray[Any]:
        """All of them, one after the other."""
        self.close()
        assert self._flat is not None, "it is closed"
        return self._flat

    def close(self) -> None:
        """Nothing is written after this."""
        if self._flat is not None:
            return
        shape = (self._ends[-1], *self._like.shape[1:])
        if self._file is None:
            self._flat = np.frombuffer(self._chunk, self._like.dtype).reshape(shape)
            return
        self._write()
        with self._file as file:
            file.flush()
            # A plain array on the map: slices of a memmap are ten times as slow.
            self._flat = np.asarray(np.memmap(file, self._like.dtype, "r", shape=shape))

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="retort-rows-")  # noqa: SIM115, it is closed once it is mapped
        self._file.write(self._chunk)
        self._chunk = bytearray()
