"""Decisions: whether a stage's labels replace the previous ones, and whether the final student may be promoted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retort.artifacts.base import Artifact
from retort.config.base import ERRORS, Metric
from retort.records.base import Record, Score

VERDICT = "verdict.json"


class McNemarCounts(Record):
    """Whole labels that only one side gets right, with McNemar's p."""

    only_old: int
    only_new: int
    p_value: float


class SelectionVerdict(Record):
    """Compares students trained on the new labels with those trained on the old ones, on the judging rows."""

    gain: float
    """Improvement: of an error, by how much it is less."""
    low: float
    """Lower end of the gain's 95 % bootstrap interval."""
    high: float
    win_share: float
    """Share of resamples, in [0, 1], in which the new labels win."""
    resamples: int
    metric: Metric
    accepted: bool
    n: int
    mcnemar: McNemarCounts


@dataclass(frozen=True)
class Selection(Artifact):
    kind = "selections"

    def verdict(self) -> SelectionVerdict:
        return SelectionVerdict.model_validate_json((self.folder / VERDICT).read_text(encoding="utf-8"))


VerdictOutcome = Literal["passed", "first", "refused", "reigns"]
"""passed: better than the champion. first: there is no champion, and all other checks passed. refused: not good enough.
reigns: it already is the champion, so there is nothing to promote."""


class ChampionComparison(Record):
    """Compares the final student with the champion on the same test rows, paired, in the deciding metric."""

    score: float
    champion_score: float
    gain: float
    """Improvement: of an error, by how much it is less."""
    low: float
    """Lower end of the gain's 95 % bootstrap interval."""
    high: float
    min_gain: float
    win_share: float
    """Share of resamples, in [0, 1], in which the gain is more than `min_gain`; at least `confidence` is needed."""
    confidence: float
    resamples: int
    only_champion: int
    """Rows whose whole label only the champion gets right."""
    only_final: int
    p_value: float
    """McNemar's p for these two counts; it decides nothing."""


class SliceScore(Record):
    """The final student's score on a slice of the test rows."""

    name: str
    metric: Metric
    n: int
    score: Score | None
    """None if the slice has no rows."""
    floor: float
    min_rows: int

    @property
    def passed(self) -> bool:
        if self.score is None or self.n < self.min_rows:
            return False
        return self.score.value <= self.floor if self.metric in ERRORS else self.score.value >= self.floor


class Cost(Record):
    """What the final student costs in production."""

    latency_ms: float
    """Median time for one row on one CPU thread, from text to label."""
    timed_rows: int
    machine: str
    max_latency_ms: float | None
    megabytes: float
    """Size of the weights, in units of 10^6 bytes."""
    max_megabytes: float | None


class Verdict(Record):
    """The gate's verdict."""

    outcome: VerdictOutcome
    accepted: bool
    """Whether to promote the student: if the outcome is passed or first."""
    metric: Metric
    n: int
    """Test rows."""
    contest: ChampionComparison | None
    """None if there is no champion."""
    slices: tuple[SliceScore, ...]
    cost: Cost
    reasons: tuple[str, ...]
    """One sentence per check."""
    refusals: tuple[str, ...]
    """The sentences of the checks that failed."""


@dataclass(frozen=True)
class GateVerdict(Artifact):
    kind = "verdicts"

    def verdict(self) -> Verdict:
        return Verdict.model_validate_json((self.folder / VERDICT).read_text(encoding="utf-8"))


def write_verdict(folder: Path, verdict: SelectionVerdict | Verdict) -> None:
    (folder / VERDICT).write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
