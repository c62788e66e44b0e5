"""The facts of a run of the soft-label recipe."""

from typing import Any

from pydantic import Field

from retort.artifacts.scores import ArmScores
from retort.artifacts.times import ScoringCosts
from retort.config import Metric
from retort.metrics.format import TITLES, percent, signed
from retort.metrics.seeds import SeedScore
from retort.records.base import Record, digest
from retort.report.base import Summary, Table, as_key
from retort.report.quality import ErrorTable

TEXTS: dict[str, str] = {**TITLES, "quadratic_weighted_kappa": "kappa", "ece": "ECE", "nll": "NLL", "brier": "Brier"}

ARMS: dict[str, str] = {
    "teacher": "the teacher",
    "hard": "tiny student on gold labels alone",
    "label-smoothing": "the same with smoothed labels",
    "soft-grid": "gold labels and the teacher's probabilities",
    "soft-only": "the teacher's probabilities alone",
    "only-where-right": "the teacher's probabilities where it is right",
    "with-pool": "with rows that only the teacher labeled",
    "tinybert": "an encoder of TinyBERT's size on gold labels",
    "tfidf": "TF-IDF and logistic regression",
    "majority": "the most frequent class",
}


class McNemarOfSeed(Record):
    """McNemar's test on two students with the same seed, on the same rows."""

    seed: int
    only_old: int
    """Rows that only the old one gets right."""
    only_new: int
    p_value: float


class Gain(Record):
    """One arm compared with another on the same rows."""

    arm: str
    against: str
    rows: str
    """`dev`, or the name of the test set."""
    metric: Metric
    difference: SeedScore
    """Difference in the metric, paired by seed."""
    low: float
    """Lower end of the 95 % interval over rows (paired bootstrap of the means over seeds)."""
    high: float
    mcnemar: tuple[McNemarOfSeed, ...]


class Tried(Record):
    """A setting of an arm with its scores on the dev rows."""

    arm: str
    setting: dict[str, Any]
    dev: SeedScore
    dev_loss: float
    """In nats."""
    kept: bool

    @property
    def text(self) -> str:
        names = {"soft_weight": "lambda", "distillation_temperature": "T"}
        parts = [f"{names[name]} = {value:g}" for name, value in self.setting.items() if name in names]
        return ", ".join(parts) or "-"


class SoftLabelSummary(Summary):
    picture_key = "scores-by-arm"

    classes: tuple[str, ...]
    seeds: int
    scores: dict[str, dict[str, ArmScores]]
    """Scores by arm, then by rows."""
    gains: tuple[Gain, ...]
    tried: tuple[Tried, ...]
    costs: ScoringCosts
    student: dict[str, Any]
    """Arm, setting, seed, dev accuracy, parameters and bytes of the exported student."""
    missing: int
    """Training rows without probabilities from the teacher."""
    rows: dict[str, int]
    """Number of rows by role."""
    data_keys: dict[str, str]
    """Keys of the rows' artifacts, by role."""
    errors: dict[str, tuple[ErrorTable, ...]] = Field(default_factory=dict)
    """By test set: errors of the exported student's arm, with its seed."""

    @property
    def metric(self) -> Metric:
        return self.metrics[0]

    @property
    def tests(self) -> tuple[str, ...]:
        return tuple(role for role in self.scores["teacher"] if role not in ("train", "dev", "unlabeled"))

    @property
    def reason(self) -> str:
        """The outcome in sentences."""
        first = [gain for gain in self.gains if gain.against == "hard" and gain.arm == _FIRST]
        return " ".join([_exported(self), *(_gain_text(gain) for gain in first)])

    @property
    def conclusion(self) -> str:
        return self.reason

    @property
    def data_digest(self) -> str:
        return digest(self.data_keys)

    def tables(self) -> dict[str, Table]:
        """One table per test set."""
        return {f"scores-{as_key(rows)}": table(self, rows) for rows in self.tests}

    def final_as_json(self) -> dict[str, object]:
        """`stage` is the exported student's arm, and `scores` are by test set."""
        arm = self.scores[self.student["arm"]]
        tests = {rows: {metric: one.model_dump() for metric, one in arm[rows].rows.items()} for rows in self.tests}
        return {"stage": self.student["arm"], "scores": tests, "model": self.model_uri}


_FIRST = "soft-grid"
"""The paper's arm, which the sentences are about."""


def table(summary: SoftLabelSummary, rows: str) -> Table:
    """The result table for one set of rows, in percent, except NLL in nats and Brier scores."""
    names = [*summary.metrics, "ece", "nll", "brier"]
    arms = [arm for arm, by_rows in summary.scores.items() if rows in by_rows]
    columns = ("arm", *(TEXTS[name] for name in names))
    return Table(columns, tuple((_named(arm, summary), *_cells(summary.scores[arm][rows], names)) for arm in arms))


def _named(arm: str, summary: SoftLabelSummary) -> str:
    """The arm's name, with a star if the exported student is from it."""
    return f"{arm} *" if arm == summary.student["arm"] else arm


def _cells(scores: ArmScores, names: list[str]) -> list[str]:
    return [_shown(name, scores.metrics[name]) if scores.metrics else "-" for name in names]


def gain_table(summary: SoftLabelSummary) -> Table:
    """Differences in accuracy, in percentage points, with the number of seeds whose McNemar test is significant."""
    pairs = list(dict.fromkeys((gain.arm, gain.against) for gain in summary.gains))
    found = {(gain.arm, gain.against, gain.rows): gain for gain in summary.gains}
    lines = (
        (f"{arm} - {against}", *(_gain_cell(found[arm, against, rows]) for rows in summary.tests))
        for arm, against in pairs
    )
    return Table(("difference in accuracy", *summary.tests), tuple(lines))


def _gain_cell(gain: Gain) -> str:
    won, lost = _sure(gain)
    sure = f"{won}/{len(gain.mcnemar)}" if won >= lost else f"-{lost}/{len(gain.mcnemar)}"
    difference = gain.difference
    if len(difference.values) == 1:
        return f"{signed(difference.mean)} {sure}"
    return f"{signed(difference.mean)} ±{percent((difference.high - difference.low) / 2)} {sure}"


def _sure(gain: Gain) -> tuple[int, int]:
    """In how many seeds McNemar's p is below 0.05: (in favor, against)."""
    sure = [one for one in gain.mcnemar if one.p_value < 0.05]
    return sum(one.only_new > one.only_old for one in sure), sum(one.only_new < one.only_old for one in sure)


def _shown(name: str, score: SeedScore) -> str:
    def number(value: float) -> str:
        return f"{value:.2f}" if name in ("nll", "brier") else percent(value)

    if len(score.values) == 1:
        return number(score.mean)
    half = (score.high - score.low) / 2
    return f"{number(score.mean)} ±{number(half)}"


def cost_table(summary: SoftLabelSummary) -> Table:
    costs = summary.costs.scorers
    student = costs["student"]
    rows = tuple(
        (
            name,
            f"{one.parameters:,}",
            f"{one.bytes / 1e6:.2f} MB",
            f"{one.latency_ms:.3g} ms",
            f"{one.rows_per_second:,.0f}",
            f"{one.parameters / student.parameters:,.0f} in size, {one.latency_ms / student.latency_ms:,.0f} in time",
        )
        for name, one in costs.items()
    )
    return Table(("", "parameters", "size", "one row", "rows/s", "times the student's"), rows)


def _exported(summary: SoftLabelSummary) -> str:
    student = summary.student
    return (
        f"The exported student is of the arm {student['arm']}, seed {student['seed']}: of all arms with a tiny student "
        f"it was most often right on the dev rows ({percent(student['dev_accuracy'])} %)."
    )


def _gain_text(gain: Gain) -> str:
    won, lost = _sure(gain)
    return (
        f"On {gain.rows}, {gain.arm} scores {signed(gain.difference.mean)} {TEXTS[gain.metric]} against {gain.against} "
        f"(95 % interval over seeds {signed(gain.difference.low)} to {signed(gain.difference.high)}, over rows "
        f"{signed(gain.low)} to {signed(gain.high)}; McNemar's p < 0.05 for it in {won} of {len(gain.mcnemar)} seeds, "
        f"against it in {lost})."
    )
