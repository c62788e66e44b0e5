"""Arrays of different lengths, one after the other, in a temporary file once they are large: memory holds where each
begins. They are read, not mapped, as pages of a map count as the process's memory."""

import math
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
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
        (data,) = self._read([place])
        return self._array(data)

    def together(self, places: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The arrays at these places, one after the other, and the length of each."""
        parts = self._read(places)
        return self._array(b"".join(parts)), np.array([len(one) for one in parts], dtype=np.int64) // self._item_bytes

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[place] for place in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(arrays,)`"""
        ends: NDArray[np.int64] = np.frombuffer(self._ends, dtype=np.int64)
        return ends[1:] - ends[:-1]

    def _read(self, places: Iterable[int]) -> list[bytes] | list[bytearray]:
        self.close()
        ends, size = self._ends, self._item_bytes
        bounds = [(ends[place] * size, ends[place + 1] * size) for place in places]
        if self._file is None:
            return [self._chunk[start:end] for start, end in bounds]
        file = self._file.fileno()
        return [os.pread(file, end - start, start) for start, end in bounds]

    def _array(self, data: bytes | bytearray) -> NDArray[Any]:
        return np.frombuffer(data, self._like.dtype).reshape(-1, *self._like.shape[1:])

    def close(self) -> None:
        """Nothing is written after this."""
        if self._is_closed:
            return
        self._item_bytes = self._like.itemsize * math.prod(self._like.shape[1:])
        if self._file is not None:
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
