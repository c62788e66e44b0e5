"""DuckDB, for queries on files that need not fit into memory."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import duckdb


@contextmanager
def open_database(**config: str | bool | int | float | list[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, with DuckDB's settings; closed on leaving."""
    with closing(duckdb.connect(config=config)) as database:
        # On where Python was started without a file, as by `python -c`; it would write between a command's results.
        database.execute("SET enable_progress_bar = false")
        yield database
