"""What is wrong with the rows of a run: near-duplicates, leakage, suspicious labels, drift."""

from dataclasses import dataclass

from retort.artifacts.base import Artifact
from retort.records.base import Record

FACTS, DUPLICATES, SUSPICIOUS = "hygiene.json", "near_duplicates.parquet", "suspicious.parquet"


class DuplicateRow(Record):
    """A row and another that it nearly is. Texts are without case and repeated white space."""

    example_id: str
    text: str
    of_id: str
    of_text: str
    similarity: float
    """Jaccard of their runs of five characters."""


class Duplicates(Record):
    rows: int
    """Rows that are near-duplicates."""
    compared: int
    first: tuple[DuplicateRow, ...]
    """The first of them; all are in the artifact's `near_duplicates.parquet`."""

    @property
    def share(self) -> float:
        return self.rows / self.compared if self.compared else 0.0


class SuspiciousLabel(Record):
    """A teacher's label that students who did not see it contradict. Labels are rendered for people."""

    example_id: str
    text: str
    label: str
    cross_label: str
    confidence: float
    """Of the cross-label."""


class Suspicious(Record):
    rows: int
    compared: int
    """Rows with both labels."""
    first: tuple[SuspiciousLabel, ...]
    """The most confident; all are in the artifact's `suspicious.parquet`."""

    @property
    def share(self) -> float:
        return self.rows / self.compared if self.compared else 0.0


class Change(Record):
    """One thing that was compared with the last night."""

    what: str
    measure: str
    size: float
    """In [0, 1]; 0 is no difference."""
    p_value: float
    surely: bool
    """Whether it is hardly chance: p is below 0.01, divided by the number of comparisons."""
    details: str


class Drift(Record):
    """Tonight's new rows, compared with the rows of the last night that had others or other labels."""

    new: int
    """Rows that the last pool did not have."""
    last: int
    """Rows of the last pool."""
    changes: tuple[Change, ...]
    """Empty if there are too few rows to compare."""

    @property
    def size(self) -> float:
        """The largest size of what is hardly chance."""
        return max((change.size for change in self.changes if change.surely), default=0.0)


class PoolHygiene(Record):
    within: Duplicates
    """Rows of the pool that nearly are an earlier one."""
    leaked: Duplicates
    """Test rows that a row of the pool or of the labeled set nearly is."""
    suspicious: Suspicious | None
    """None if there are no cross-labels."""
    drift: Drift | None
    """None if no earlier night had other rows or labels."""


@dataclass(frozen=True)
class Hygiene(Artifact):
    kind = "hygiene"

    def facts(self) -> PoolHygiene:
        return PoolHygiene.model_validate_json((self.folder / FACTS).read_text(encoding="utf-8"))
