"""A file of completions beside the rows of a pool, in whatever order either is, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from retort.data.completions import BadLine, read_completions
from retort.data.ids import SeenIds
from retort.io.batched import batched
from retort.io.database import query
from retort.io.parquet import Row, write_rows
from retort.io.scratch import scratch
from retort.records.base import ParseFailure, RecordedCompletion

BATCH_LINES = 1024
_COMPLETIONS = pa.schema([(name, pa.string()) for name in ("example_id", "text", "finish_reason")])
_IDS = pa.schema([("example_id", pa.string())])
_BESIDE = """
    SELECT found.example_id, found.text, found.finish_reason
    FROM read_parquet($rows, file_row_number = true) AS asked
    LEFT JOIN read_parquet($completions) AS found ON found.example_id = asked.example_id
    ORDER BY asked.file_row_number
"""
_UNKNOWN = """
    SELECT count(DISTINCT example_id), min(example_id)
    FROM read_parquet($ids) AS completed ANTI JOIN read_parquet($rows) AS asked USING (example_id)
    WHERE example_id NOT IN (SELECT unnest($aside::VARCHAR[]))
"""
_MISSING = (
    "SELECT count(*) FROM read_parquet($rows) AS asked ANTI JOIN read_parquet($ids) AS completed USING (example_id)"
)


class Recorded:
    """The first completion of each id, in a temporary file."""

    def __init__(self, file: Path, failures: dict[str, ParseFailure]) -> None:
        self._file = file
        self.failures = failures
        """Lines that are no completions, by the id of their example, or by their place if they have none; and
        completions whose id an earlier one has. They are held in memory."""

    def beside(self, rows: Path) -> Iterator[RecordedCompletion | None]:
        """The completion of each row of a Parquet file with example_id, in its order."""
        for batch in query(_BESIDE, rows=str(rows), completions=str(self._file)):
            for example_id, text, finish_reason in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield None if example_id is None else RecordedCompletion(example_id, text, finish_reason)


@contextmanager
def recorded(path: str, endpoint_url: str | None) -> Iterator[Recorded]:
    """Read a file of completions. Raises DataError if it is missing, cut or damaged."""
    failures: dict[str, ParseFailure] = {}
    with scratch("recorded") as folder:
        file = folder / "completions.parquet"
        write_rows(file, _COMPLETIONS, _first_of_each(read_completions(path, endpoint_url), failures))
        yield Recorded(file, failures)


def _first_of_each(lines: Iterator[RecordedCompletion | BadLine], failures: dict[str, ParseFailure]) -> Iterator[Row]:
    """The completions as rows; what is none of them is added to `failures`."""
    seen = SeenIds()
    for batch in batched(lines, BATCH_LINES):
        ids = [one.example_id for one in batch if isinstance(one, RecordedCompletion)]
        known = {one for one, place in zip(ids, seen.first_places(ids), strict=True) if place is not None}
        new: dict[str, str] = {}
        for one in batch:
            if isinstance(one, BadLine):
                failures[one.example_id or one.place] = ParseFailure(one.reason, one.detail, one.raw)
            elif one.example_id in known or one.example_id in new:
                detail = "the same custom_id occurs twice; the first one counts"
                failures[f"{one.example_id} (again)"] = ParseFailure("duplicated", detail, one.text)
            else:
                new[one.example_id] = "line 0"
                yield {"example_id": one.example_id, "text": one.text, "finish_reason": one.finish_reason}
        seen.add(list(new), list(new.values()))


class Coverage(NamedTuple):
    """How a file of completions and the rows of a pool go together."""

    unknown: int
    """Ids of completions that the pool does not have."""
    first_unknown: str | None
    missing: int
    """Rows of the pool without a completion."""


def coverage(completed: Iterable[str], rows: Path, aside: Sequence[str]) -> Coverage:
    """`completed` are the ids of completions, `rows` is a Parquet file with example_id, and ids `aside` are no rows of
    it, but known."""
    with scratch("recorded") as folder:
        ids = folder / "ids.parquet"
        write_rows(ids, _IDS, ({"example_id": one} for one in completed))
        files = {"ids": str(ids), "rows": str(rows)}
        ((unknown, first),) = _rows_of(query(_UNKNOWN, **files, aside=list(aside)))
        ((missing,),) = _rows_of(query(_MISSING, **files))
    return Coverage(unknown, first, missing)


def _rows_of(batches: Iterator[pa.RecordBatch]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
