"""Arrays of different lengths, one after the other, in a temporary file once they are large: memory holds where each
begins. They are read, not mapped, as pages of a map count as the process's memory."""

import math
import os
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
        self._is_closed = False
        for one in arrays:
            self.append(one)

    def append(self, one: NDArray[Any]) -> None:
        assert not self._is_closed, "all is written before the first is read"
        self._ends.append(self._ends[-1] + len(one))
        self._chunk += one.tobytes()
        self._like = one[:0]
        if len(self._chunk) >= CHUNK_BYTES:
            self._write()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> NDArray[Any]:
        """Raises IndexError; places are counted from 0 only."""
        self.close()
        size = self._like.itemsize * math.prod(self._like.shape[1:])
        start, end = self._ends[place] * size, self._ends[place + 1] * size
        data = self._chunk[start:end] if self._file is None else os.pread(self._file.fileno(), end - start, start)
        return np.frombuffer(data, self._like.dtype).reshape(-1, *self._like.shape[1:])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[place] for place in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(arrays,)`"""
        ends: NDArray[np.int64] = np.frombuffer(self._ends, dtype=np.int64)
        return ends[1:] - ends[:-1]

    def close(self) -> None:
        """Nothing is written after this."""
        if not self._is_closed and self._file is not None:
            self._write()
            self._file.flush()
        self._is_closed = True

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="retort-rows-")  # noqa: SIM115, it is closed with all that reads it
        self._file.write(self._chunk)
        self._chunk = bytearray()
