"""Arrays of different lengths, in memory or in a file."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retort.students import ragged
from retort.students.encoder import EncodedRow
from retort.students.generative_data import Pair, TrainingPairs
from retort.students.ragged import Ragged
from retort.students.token_distillation import Listed
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


def test_what_was_read_does_not_count_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would, if the file were mapped: a limit on a process's memory would be reached by reading."""
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 2**20)
    stored = Ragged(np.ones(2**20, dtype=np.uint8) for _ in range(64))
    stored.close()
    before = resident_bytes()
    assert sum(int(one.sum()) for one in stored) == 2**26
    assert resident_bytes() - before < 2**24


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("chunk_bytes", [1, 2**24])
def test_every_pair_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Soft or hard, with lists of any length, and whatever the pairs before and after it are."""
    monkeypatch.setattr(ragged, "CHUNK_BYTES", chunk_bytes)
    generator = np.random.default_rng(0)

    def pair(source: int, target: int, *, classes: int = 0, known: int = 0, k: int = 0, weight: float = 1.0) -> Pair:
        lists = generator.integers(0, 99, (known, k)).astype(np.int32), generator.random((known, k), dtype=np.float32)
        return Pair(
            generator.integers(0, 2**31 - 1, source),
            generator.integers(0, 99, target),
            generator.random((target, classes), dtype=np.float32) if classes else None,
            Listed(*lists) if k else None,
            weight,
        )

    pairs = [
        pair(3, 2),
        pair(1, 4, classes=5),
        pair(0, 1, known=1, k=20, weight=0.25),
        pair(7, 3, known=2, k=3),
        pair(2, 3, known=0, k=4, weight=0.1),
        pair(2, 2),
    ]
    stored = TrainingPairs(pairs)
    assert stored.lengths.tolist() == [[len(one.source), len(one.target)] for one in pairs]
    assert stored.weights is not None
    assert stored.weights.dtype == np.float32
    assert TrainingPairs(pairs[:2]).weights is None
    for one, other in zip(stored, pairs, strict=True):
        same = [(one.source, other.source), (one.target, other.target), (one.probabilities, other.probabilities)]
        if one.listed is not None and other.listed is not None:
            same += [(one.listed.ids, other.listed.ids), (one.listed.logprobs, other.listed.logprobs)]
        assert (one.listed is None, one.weight) == (other.listed is None, np.float32(other.weight))
        for found, wanted in same:
            assert (found is None) == (wanted is None)
            if found is not None and wanted is not None:
                assert found.dtype == wanted.dtype
                np.testing.assert_array_equal(found, wanted)
