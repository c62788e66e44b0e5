"""Arrays of different lengths, in memory or in a file."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from retort.students import ragged
from retort.students.encoder import EncodedRow
from retort.students.ragged import Ragged
from retort.students.training import TrainingRows


@pytest.mark.parametrize("chunk_bytes", [1, 300, 2**24])
@pytest.mark.parametrize(("shape", "dtype"), [((), np.int32), ((3,), np.float32)])
def test_every_array_is_read_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, shape: tuple[int, ...], dtype: type
) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", chunk_bytes)
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 99, (length, *shape)).astype(dtype) for length in (3, 0, 1, 7, 0, 40)]
    stored = Ragged(arrays)
    assert stored.lengths.tolist() == [3, 0, 1, 7, 0, 40]
    for one, other in zip(stored, arrays, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_the_rows_of_a_training_are_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 2**16)
    count = 20_000

    def rows() -> Iterator[EncodedRow]:
        return (EncodedRow(np.full(50, n, dtype=np.int32), np.array([0, -n], dtype=np.int32)) for n in range(count))

    def targets() -> Iterator[NDArray[np.int64]]:
        return (np.array([n % 7, 0]) for n in range(count))

    tracemalloc.start()
    data = TrainingRows(rows(), targets())
    assert data.token_ids[count - 1].tolist() == [count - 1] * 50
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(data), data.num_cut) == (count, count - 1)
    assert used < 50 * count, "24 bytes a row, not those of the tokens"
    assert peak < 100 * count
