"""Rows of a data set, with the gold labels in a separate file.

Training and prediction read `rows.parquet`, which has no gold column, so that gold labels cannot leak by mistake.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retort.artifacts.base import NOT_STORED, Artifact
from retort.io.parquet import Row, read_rows
from retort.records.base import Example

ROWS, GOLD_ROWS = "rows.parquet", "gold.parquet"
GROUP_ROWS = "groups.parquet"
"""Exists only if the config names a column for groups."""


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

    def rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        return read_rows(self.path, columns)

    def gold_rows(self) -> Iterator[Row]:
        """Rows with a gold label; empty if the source has none."""
        path = self.folder / GOLD_ROWS
        return read_rows(path) if path.exists() else iter(())

    def gold(self) -> list[Example]:
        """All gold-labeled examples. Only scoring may use them, and training if the labeled set decides when to
        stop."""
        return [Example(row["example_id"], row["text"], row["label"]) for row in self.gold_rows()]

    def groups(self) -> dict[str, str]:
        """Groups by example_id; empty if the config names no column for groups."""
        path = self.folder / GROUP_ROWS
        return {row["example_id"]: row["group"] for row in read_rows(path)} if path.exists() else {}
