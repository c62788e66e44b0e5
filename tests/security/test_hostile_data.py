"""Data files that somebody else wrote: a sentence where they claim the absurd, before memory is spent on it."""

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.data.files import data_files
from retort.data.formats import rows_of
from retort.errors import DataError


def read(path: Path) -> int:
    (file,) = data_files(str(path), None)
    return sum(1 for _ in rows_of(file))


@pytest.fixture
def parquet(tmp_path: Path) -> bytes:
    path = tmp_path / "honest.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"]}), path)
    assert read(path) == 2
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 2**31 - 1, 2**32 - 1])
def test_a_footer_of_an_absurd_size(tmp_path: Path, parquet: bytes, size: int) -> None:
    path = tmp_path / "hostile.parquet"
    path.write_bytes(parquet[:-8] + struct.pack("<I", size) + b"PAR1")
    with pytest.raises(DataError, match=r"hostile\.parquet: not a Parquet file, or damaged"):
        read(path)


def test_a_footer_with_any_byte_changed(tmp_path: Path, parquet: bytes) -> None:
    """Sizes, offsets, counts and types of pages and columns: rows, or a sentence, never anything else."""
    path = tmp_path / "hostile.parquet"
    refused = 0
    (footer,) = struct.unpack("<I", parquet[-8:-4])
    for place in range(len(parquet) - 8 - footer, len(parquet) - 4):
        changed = bytearray(parquet)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            assert read(path) <= 4
        except DataError:
            refused += 1
    assert refused > 100
