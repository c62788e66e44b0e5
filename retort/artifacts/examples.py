"""Rows of a data set, with gold labels in a file of their own.

Whatever trains or predicts reads `rows.parquet`, which has no gold column: nothing can leak by mistake.
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
"""Only where the config names a column for groups."""


@dataclass(frozen=True)
class Examples(Artifact):
    kind = "examples"

    @classmethod
    def aside(cls, folder: Path) -> Self:
        """Rows that were written to a folder and are in no store."""
        return cls(NOT_STORED, folder)

    @property
    def path(self) -> Path:
        """The file of all rows, without gold."""
        return self.folder / ROWS

    def rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        return read_rows(self.path, columns)

    def gold_rows(self) -> Iterator[Row]:
        """Rows with a gold label; none where the source has no gold."""
        path = self.folder / GOLD_ROWS
        return read_rows(path) if path.exists() else iter(())

    def gold(self) -> list[Example]:
        """All gold-labeled examples. Only scoring may call this, and a training that ends by the labeled set."""
        return [Example(row["example_id"], row["text"], row["label"]) for row in self.gold_rows()]

    def groups(self) -> dict[str, str]:
        """Group by example_id; empty where the config names no column for groups."""
        path = self.folder / GROUP_ROWS
        return {row["example_id"]: row["group"] for row in read_rows(path)} if path.exists() else {}
