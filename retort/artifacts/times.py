"""What scoring costs: parameters, bytes, latency of one row, throughput of many."""

from dataclasses import dataclass
from typing import Literal

from retort.artifacts.base import Artifact
from retort.records.base import Record

TIMES = "times.json"

Scorers = Literal["teacher", "tinybert", "student"]


class ScorerTimes(Record):
    """The cost of one scorer from text to probabilities, in fp32 on one CPU thread."""

    parameters: int
    """Including embeddings."""
    bytes: int
    """Size of the weights; for the student, of the whole folder."""
    latency_ms: float
    """Median time for a single row."""
    rows_per_second: float
    """In batches of 256, on one thread."""


class ScoringCosts(Record):
    machine: str
    timed_rows: int
    """Rows from the first test set. The median latency is over the first 200 of them."""
    scorers: dict[Scorers, ScorerTimes]


@dataclass(frozen=True)
class Times(Artifact):
    kind = "times"

    def costs(self) -> ScoringCosts:
        return ScoringCosts.model_validate_json((self.folder / TIMES).read_text(encoding="utf-8"))
