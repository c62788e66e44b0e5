"""Rows on disk: Parquet with zstd, written and read in batches, never all in memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EXAMPLES = pa.schema([("example_id", pa.string()), ("text", pa.string())])
"""The pool, and every input that a student sees: no gold, so that none can leak."""
GOLD = pa.schema([("example_id", pa.string()), ("text", pa.string()), ("label", pa.string())])
GROUPS = pa.schema([("example_id", pa.string()), ("group", pa.string())])
"""What scores are also given by."""
_PREDICTED: "list[pa.Field[Any]]" = [
    pa.field("example_id", pa.string()),
    pa.field("seed", pa.int32()),
    pa.field("probabilities", pa.list_(pa.float32())),
]
PROBABILITIES = pa.schema(_PREDICTED)
"""What a scorer says of a row; the classes are named in the artifact's `made_of`, and probabilities sum to 1."""
_LABELLED: "list[pa.Field[Any]]" = [
    pa.field("example_id", pa.string()),
    pa.field("text", pa.string()),
    pa.field("label", pa.string()),
    pa.field("confidence", pa.float32()),
    pa.field("labeler", pa.string()),
    pa.field("probabilities", pa.list_(pa.float16())),  # (units, classes), row by row; null for hard labels
]
PSEUDOLABELS = pa.schema(_LABELLED)
"""Also what a student's predictions look like."""
FAILURES = pa.schema(
    [("example_id", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("raw", pa.string())]
)

BATCH_ROWS = 4096

Row = dict[str, Any]


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Write, and return how many. Fields that a row lacks are null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    iterator, count = iter(rows), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(iterator, BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Row]:
    """Rows in the order written."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()


def count_rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
