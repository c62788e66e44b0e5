"""DuckDB, for queries on files that need not fit into memory."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from retort.io.scratch import scratch

BATCH_ROWS = 2**14


@contextmanager
def open_database(**config: str | bool | int | float | list[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, with DuckDB's settings; closed on leaving."""
    with closing(duckdb.connect(config=config)) as database:
        # On where Python was started without a file, as by `python -c`; it would write between a command's results.
        database.execute("SET enable_progress_bar = false")
        yield database


@contextmanager
def spilling_database(folder: Path, memory_limit: str = "1GB") -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that sorts and joins in so much memory, and writes what is more into `folder`."""
    with open_database(
        memory_limit=memory_limit,
        threads=2,
        temp_directory=f"{folder}/spilled",
        preserve_insertion_order=False,
        autoinstall_known_extensions=False,
    ) as database:
        yield database


def query(sql: str, **parameters: Any) -> Iterator[pa.RecordBatch]:
    """The result of an SQL statement in batches, in bounded memory, however large the files are that it names."""
    with scratch("database") as folder, spilling_database(folder, "500MB") as database:
        yield from database.sql(sql, params=parameters).to_arrow_reader(BATCH_ROWS)
