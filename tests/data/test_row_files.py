"""Rows on disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retort.io.parquet import BATCH_ROWS, EXAMPLES, PSEUDOLABELS, read_rows, write_rows


@pytest.mark.parametrize("columns", [None, ["example_id", "probabilities"], ["probabilities"]])
def test_probabilities_come_back_as_arrays(columns: list[str] | None, tmp_path: Path) -> None:
    """Of several batches, with rows that have none, and empty ones."""
    generator = np.random.default_rng(0)
    given = [None if number % 5 == 3 else generator.random(number % 4) for number in range(BATCH_ROWS + 10)]
    halves = [one if one is None else one.astype(np.float16) for one in given]
    rows = ({"example_id": str(number), "probabilities": one} for number, one in enumerate(halves))
    assert write_rows(tmp_path / "rows.parquet", PSEUDOLABELS, rows) == len(given)
    found = list(read_rows(tmp_path / "rows.parquet", columns))
    assert len(found) == len(given)
    for row, half in zip(found, halves, strict=True):
        if half is None:
            assert row["probabilities"] is None
        else:
            assert row["probabilities"].dtype == np.float16
            assert row["probabilities"].tolist() == half.tolist()
    if columns is None:
        assert list(found[0]) == PSEUDOLABELS.names
        assert [row["example_id"] for row in found] == [str(number) for number in range(len(given))]


def test_what_was_read_is_written_the_same(tmp_path: Path) -> None:
    rows = [{"example_id": "a", "probabilities": np.array([0.1, 0.9], dtype=np.float16)}, {"example_id": "b"}]
    write_rows(tmp_path / "first.parquet", PSEUDOLABELS, rows)
    write_rows(tmp_path / "second.parquet", PSEUDOLABELS, read_rows(tmp_path / "first.parquet"))
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()


def test_what_was_read_is_not_kept(tmp_path: Path) -> None:
    file, generator = tmp_path / "rows.parquet", np.random.default_rng(0)
    count = write_rows(file, EXAMPLES, ({"text": generator.bytes(100).hex()} for _ in range(20 * BATCH_ROWS)))
    before, most = pa.total_allocated_bytes(), 0
    for at, _ in enumerate(read_rows(file), start=1):
        if at % 1000 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
    assert at == count
    assert most < file.stat().st_size / 2
