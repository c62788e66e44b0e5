"""What changed in a data source since the last run. Rows are the same if both id and text are."""

from pathlib import Path
from typing import NamedTuple

from retort.io.database import open_database


class PoolDiff(NamedTuple):
    """Row counts of a pool compared with the pool of the previous run."""

    new: int
    """Ids that were not in the previous pool."""
    changed: int
    """Ids whose text is different now."""
    gone: int
    """Ids that are no longer there."""
    same: int


def compare_rows(before: Path | None, now: Path | None) -> PoolDiff:
    """Compare two `rows.parquet` files in bounded memory. Without `before`, every row is new."""
    if now is None:
        return PoolDiff(0, 0, 0, 0)
    with open_database(memory_limit="1GB", threads=2) as connection:
        if before is None:
            (count,) = connection.execute("SELECT count(*) FROM read_parquet($now)", {"now": str(now)}).fetchone() or (
                0,
            )
            return PoolDiff(count, 0, 0, 0)
        row = connection.execute(
            """
            SELECT count(*) FILTER (old.example_id IS NULL),
                   count(*) FILTER (old.text <> new.text),
                   count(*) FILTER (new.example_id IS NULL),
                   count(*) FILTER (old.text = new.text)
            FROM read_parquet($before) AS old FULL JOIN read_parquet($now) AS new USING (example_id)
            """,
            {"before": str(before), "now": str(now)},
        ).fetchone()
    return PoolDiff(*(row or (0, 0, 0, 0)))


class Sample(NamedTuple):
    """Rows at random, the same whenever they are asked for, and the number of those that they were drawn from."""

    rows: int
    ids: tuple[str, ...]
    texts: tuple[str, ...]


def new_rows(before: Path, now: Path, most: int) -> Sample:
    """Of the rows that are only in the second of two `rows.parquet` files, at most `most`."""
    rows = "read_parquet($now) AS new ANTI JOIN read_parquet($before) AS old USING (example_id, text)"
    return _sample(rows, most, before=before, now=now)


def some_rows(path: Path, most: int) -> Sample:
    """Of the rows of a `rows.parquet` file, at most `most`."""
    return _sample("read_parquet($path)", most, path=path)


def _sample(rows: str, most: int, **paths: Path) -> Sample:
    values = {name: str(path) for name, path in paths.items()}
    with open_database(memory_limit="1GB", threads=2) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {rows}", values).fetchone() or (0,)
        query = f"SELECT example_id, text FROM {rows} ORDER BY md5(example_id) LIMIT {most:d}"
        found = connection.execute(query, values).fetchall()
    return Sample(count, tuple(one for one, _ in found), tuple(text for _, text in found))
