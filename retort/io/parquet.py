"""Rows on disk: zstd-compressed Parquet, written and read in batches so that memory stays bounded."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retort.io.batched import batched

EXAMPLES = pa.schema([("example_id", pa.string()), ("text", pa.string())])
"""The pool, and everything that a student gets to see: without gold labels, so none can leak."""
GOLD = pa.schema([("example_id", pa.string()), ("text", pa.string()), ("label", pa.string())])
GROUPS = pa.schema([("example_id", pa.string()), ("group", pa.string())])
"""The group of each row, for scores per group."""
RATIONALES = pa.schema([("example_id", pa.string()), ("rationale", pa.string())])
"""Why a row's label is what it is."""
_PREDICTED: "list[pa.Field[Any]]" = [
    pa.field("example_id", pa.string()),
    pa.field("seed", pa.int32()),
    pa.field("probabilities", pa.list_(pa.float32())),
]
PROBABILITIES = pa.schema(_PREDICTED)
"""A scorer's class probabilities for each row, summing to 1; the artifact's `made_of` names the classes."""
_LABELED: "list[pa.Field[Any]]" = [
    pa.field("example_id", pa.string()),
    pa.field("text", pa.string()),
    pa.field("label", pa.string()),
    pa.field("confidence", pa.float32()),
    pa.field("labeler", pa.string()),
    pa.field("probabilities", pa.list_(pa.float16())),  # (units, classes) in row-major order; null for hard labels
]
PSEUDOLABELS = pa.schema(_LABELED)
"""Labels of a teacher or a student."""
FAILURES = pa.schema(
    [("example_id", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("raw", pa.string())]
)
BAD_ROWS = pa.schema([*((name, pa.string()) for name in ("place", "reason", "detail", "raw", "example_id"))])
"""The rows of a pool that were set aside."""

_BUFFER_BYTES = 2**20
"""Of each column."""
BATCH_ROWS = 4096
BATCH_CHARACTERS = 2**22
"""Bounds the memory of rows that are written one by one, and may be long."""

Row = dict[str, Any]


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Write the rows and return their number. Missing fields become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batched(rows, BATCH_ROWS):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


class RowWriter:
    """Writes rows that come one by one, in bounded memory. There is no file if there is no row."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer: pq.ParquetWriter | None = None
        self._batch: list[Row] = []
        self._characters = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, row: Row) -> None:
        """All values of the row are texts or None."""
        self._batch.append(row)
        self._characters += sum(len(value or "") for value in row.values())
        if len(self._batch) == BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._batch, schema=self._schema))
        self._batch, self._characters = [], 0


def parquet_file(path: Path) -> pq.ParquetFile:
    """The file, for reading from its start to its end in bounded memory: by default Arrow keeps the bytes of all that
    was read of a file until it is closed, and reads each row group whole."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Row]:
    """Rows in the order in which they were written. Lists of 16-bit numbers (a label's probabilities) are arrays: as
    numbers of Python, those of a long text take milliseconds."""
    with parquet_file(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            arrays = {field.name: _arrays(batch.column(field.name)) for field in batch.schema if _is_half(field.type)}
            rows = batch.select([name for name in batch.schema.names if name not in arrays]).to_pylist()
            for name, values in arrays.items():
                for row, value in zip(rows, values, strict=True):
                    row[name] = value
            yield from rows


def _is_half(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_float16(kind.value_type)


def _arrays(column: Any) -> list[NDArray[np.float16] | None]:
    """Of a column of lists."""
    offsets, values = column.offsets.to_pylist(), column.values.to_numpy(zero_copy_only=False)
    known = column.is_valid().to_pylist()
    return [
        values[start:end] if is_known else None
        for start, end, is_known in zip(offsets, offsets[1:], known, strict=False)
    ]


def aligned(rows: Iterable[Row], *others: Iterator[Row]) -> Iterator[tuple[Row, list[Row | None]]]:
    """Yield each row with the rows of the same example_id in the others, None where there is none. The others hold some
    of the rows, in the same order, so one pass is enough."""
    heads = [next(other, None) for other in others]
    for row in rows:
        found: list[Row | None] = []
        for index, head in enumerate(heads):
            is_its = head is not None and head["example_id"] == row["example_id"]
            found.append(head if is_its else None)
            heads[index] = next(others[index], None) if is_its else head
        yield row, found


def count_rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
