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
