"""Rows of a data set, with the gold labels in a separate file, and in a third the rows that cannot be used.

Training and prediction read `rows.parquet`, which has no gold column, so that gold labels cannot leak by mistake.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retort.artifacts.base import NOT_STORED, Artifact
from retort.io.parquet import Row, read_rows
from retort.metrics.format import shortened
from retort.records.base import ArtifactRef, Example
from retort.records.set_aside import AsideRow, SetAside
from retort.store import Store

ROWS, GOLD_ROWS = "rows.parquet", "gold.parquet"
GROUP_ROWS = "groups.parquet"
"""Exists only if the config names a column for groups."""
RATIONALE_ROWS = "rationales.parquet"
"""Exists only if the config names a column for rationales, and labeled rows have some."""
SET_ASIDE_ROWS = "set_aside.parquet"
"""Rows of the pool that cannot be used; exists only if there are any."""
SET_ASIDE = "set_aside"
"""The entry of the manifest's `details` with their number by reason; missing if there are none."""
RAW_SHOWN = 1000
"""Characters of a row that was set aside, where it is shown to people."""


@dataclass(frozen=True)
class Examples(Artifact):
    kind = "examples"

    @classmethod
    def aside(cls, folder: Path) -> Self:
        """Open rows in a folder that is not in a store."""
        return cls(NOT_STORED, folder)

    @property
    def path(self) -> Path:
        """The file with all rows, without gold labels."""
        return self.folder / ROWS

    @property
    def gold_path(self) -> Path:
        """The file with the gold-labeled rows, which exists only if there are any."""
        return self.folder / GOLD_ROWS

    def rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        return read_rows(self.path, columns)

    def gold_rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        """Rows with a gold label, in the order of all rows; empty if the source has none."""
        return read_rows(self.gold_path, columns) if self.gold_path.exists() else iter(())

    def gold(self) -> list[Example]:
        """All gold-labeled examples. Only scoring may use them, and training if the labeled set decides when to
        stop."""
        path = self.folder / RATIONALE_ROWS
        known = {row["example_id"]: row["rationale"] for row in read_rows(path)} if path.exists() else {}
        return [
            Example(row["example_id"], row["text"], row["label"], rationale=known.get(row["example_id"]))
            for row in self.gold_rows()
        ]

    def groups(self) -> dict[str, str]:
        """Groups by example_id; empty if the config names no column for groups."""
        return {row["example_id"]: row["group"] for row in self.group_rows()}

    def group_rows(self) -> Iterator[Row]:
        """example_id and group, in the order of all rows; empty if the config names no column for groups."""
        path = self.folder / GROUP_ROWS
        return read_rows(path) if path.exists() else iter(())

    def set_aside_rows(self) -> Iterator[Row]:
        """The rows that cannot be used: place, reason, detail, raw, example_id (None if it cannot be read)."""
        path = self.folder / SET_ASIDE_ROWS
        return read_rows(path) if path.exists() else iter(())

    def set_aside(self, most: int = 3) -> SetAside | None:
        """A summary of these rows with the first `most` of each reason; None if there are none."""
        reasons = self.manifest.details.get(SET_ASIDE)
        return summary_of(self.set_aside_rows(), self.manifest.rows, reasons, most) if reasons else None


def set_aside(store: Store, pool: ArtifactRef) -> SetAside | None:
    """See `Examples.set_aside`. Fetches the artifact only if there are such rows."""
    if not store.manifest_of(pool).details.get(SET_ASIDE):
        return None
    return Examples.open(store, pool).set_aside()


def summary_of(rows: Iterator[Row], good: int, reasons: Mapping[str, int], most: int = 3) -> SetAside:
    """`rows` were set aside, `good` were not."""
    reasons = dict(sorted(reasons.items(), key=lambda one: (-one[1], one[0])))
    first: dict[str, list[AsideRow]] = {reason: [] for reason in reasons}
    for row in rows:
        if len(first[row["reason"]]) < most:
            shown = {"place": row["place"], "reason": row["reason"], "detail": row["detail"]}
            first[row["reason"]].append(AsideRow(**shown, raw=shortened(row["raw"], RAW_SHOWN)))
    in_order = tuple(row for rows_of_reason in first.values() for row in rows_of_reason)
    return SetAside(read=good + sum(reasons.values()), reasons=reasons, first=in_order)
