"""The facts of a run: one JSON file that the pages, the terminal, MLflow and `run --json` are all fed from."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from retort.config import Metric
from retort.records.base import Label, Record, Score

TITLES: dict[str, str] = {
    "slot_f1": "slot F1",
    "intent_accuracy": "intent accuracy",
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "quadratic_weighted_kappa": "weighted kappa",
    "bracket_f1": "bracket F1",
    "bracket_precision": "bracket precision",
    "bracket_recall": "bracket recall",
    "unlabeled_f1": "unlabelled F1",
    "chrf": "chrF",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "field_f1": "field F1",
}

Scores = dict[str, Score]
"""By metric, in the order of the config's metrics."""

Use = Literal["final student", "rejected", "replaced", "not needed"]
"""What became of a stage's labels."""

Role = Literal["teacher", "stage", "final", "champion", "baseline"]

Outcome = Literal["passed", "first", "refused", "reigns"]
"""passed: better than the champion. first: no champion reigns, and nothing else speaks against it. refused: not good
enough. reigns: it is the champion already, so there is nothing to promote."""


class FinalGain(Record):
    """The final student against a baseline on the same test rows, paired."""

    value: float
    """The final student's score less the baseline's, in the deciding metric."""
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    only_baseline: int
    """Rows whose whole label only the baseline gets right."""
    only_final: int
    p_value: float
    """McNemar's, of these two counts."""


class ChampionComparison(Record):
    """The final student against the champion on the same test rows, paired, in the deciding metric."""

    score: float
    champion_score: float
    gain: float
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
    """McNemar's, of these two counts; it decides nothing."""


class SliceScore(Record):
    """The final student on a part of the test rows."""

    name: str
    metric: Metric
    n: int
    score: Score | None
    """None where the slice has no row."""
    floor: float
    min_rows: int

    @property
    def passed(self) -> bool:
        return self.score is not None and self.n >= self.min_rows and self.score.value >= self.floor


class Cost(Record):
    """What the final student costs whoever serves it."""

    latency_ms: float
    """For one row on one CPU thread, from text to label: the median."""
    timed_rows: int
    machine: str
    max_latency_ms: float | None
    megabytes: float
    """10^6 bytes of weights."""
    max_megabytes: float | None


class Verdict(Record):
    """The gate's."""

    outcome: Outcome
    accepted: bool
    """Whether it is to be promoted: passed or first."""
    metric: Metric
    n: int
    """Test rows."""
    contest: ChampionComparison | None
    """None where no champion reigns."""
    slices: tuple[SliceScore, ...]
    cost: Cost
    reasons: tuple[str, ...]
    """A sentence for each check."""
    refusals: tuple[str, ...]
    """Those of them that were not passed."""


class SystemRow(Record):
    """One line of the result table: a labeler, and how well it does."""

    role: Role
    name: str
    """`teacher`, `stage 1`, `final student`, `champion`, or the baseline's name."""
    stage: int | None = None
    num_students: int = 1
    measured_on: Literal["test", "pool", "labelled"] | None = None
    """pool: a teacher's labels against the pool's gold. labelled: its labels of the labelled set, each row asked about
    with the others as demonstrations."""
    scores: Scores = Field(default_factory=dict)
    """Means over the students; empty where nothing could be measured."""
    judge_scores: Scores = Field(default_factory=dict)
    """Of a stage, on the rows that stages are judged on."""
    seconds: float = 0.0
    """Compute spent on it that no row above needed."""
    note: str = ""
    final_gain: FinalGain | None = None
    """Of a baseline that is another student than the final one."""
    rejected: bool = False
    """Of a stage: its students lost against those of the stage before."""


class ChangedExample(Record):
    """A row whose label a stage changed. Labels are rendered for people."""

    example_id: str
    text: str
    old: str
    new: str
    gold: str | None
    verdict: Literal["fixed", "broken", "still wrong"] | None
    """None where the gold is not known."""
    old_probability: float | None
    """What the students gave the old label (geometric mean over its units); None for hard labels."""
    num_parts_changed: int
    confidence: float
    labeler: str


class LabelChange(Record):
    """What a stage's labels did to those of the stage before."""

    changed: int
    kept: int
    """Rows whose new label was not confident enough to replace the old one."""
    known: int
    """Of the changed rows, those whose gold is known: `fixed + broken + still_wrong`."""
    fixed: int
    broken: int
    still_wrong: int
    order: Literal["old-label-probability", "parts-changed"]
    """What `examples` are sorted by."""
    examples: tuple[ChangedExample, ...]


class LabelStage(Record):
    """The pool's labels after a stage; stage 0 is the teacher."""

    stage: int
    rows: int
    used: Use
    quality: Scores
    """Against the pool's gold, where it has some; a row without a label counts as wrong."""
    change: LabelChange | None
    """None for stage 0."""

    @property
    def changed_share(self) -> float:
        return self.change.changed / self.rows if self.change and self.rows else 0.0


class Failure(Record):
    example_id: str
    reason: str
    detail: str
    raw: str


class LabelFailures(Record):
    """Completions that gave no label."""

    reasons: dict[str, int]
    """Most frequent first."""
    examples: tuple[Failure, ...]


class NameErrors(Record):
    """Errors on one class, intent or slot type."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """How often it is in the gold."""
    predicted: int


class Confusion(Record):
    gold: str
    predicted: str
    count: int
    example: str
    """A text where it happened."""


class ErrorTable(Record):
    """Errors of the final student on the test rows."""

    title: str
    names: tuple[NameErrors, ...]
    confusions: tuple[Confusion, ...]
    """Most frequent first."""
    matrix: tuple[tuple[int, ...], ...] | None = None
    """Gold by predicted, in the order of `names`; the last column counts rows without a prediction. None for
    spans, and where there are too many classes to look at."""


class TeacherFacts(Record):
    """What a teacher cost, and how good it is known to be."""

    name: str
    """`teacher`, or `teacher-0` of an ensemble."""
    lines: tuple[tuple[str, str], ...]
    """(what, value) for people."""
    metrics: dict[str, float]
    """For MLflow: tokens, money, seconds, calibration; of the run that made the labels."""


class Timing(Record):
    """Artifacts of one sort made in one stage."""

    group: str
    what: str
    count: int
    seconds: float
    """Compute, summed; those made side by side count each."""
    examples_per_second: float | None
    """Mean over those that trained a student."""


class DataSet(Record):
    role: str
    source: str
    key: str
    rows: int
    gold: int
    """Rows with a gold label."""


class Summary(Record):
    name: str
    problem: str
    metric: Metric
    """The one that decides."""
    metrics: tuple[Metric, ...]
    stages_asked: int
    kept_stage: int
    reason: str
    """Why the final student is trained on the labels that it is trained on."""
    systems: tuple[SystemRow, ...]
    data: tuple[DataSet, ...]
    labels: tuple[LabelStage, ...]
    failures: LabelFailures
    teachers: tuple[TeacherFacts, ...]
    """Those that were asked row by row, and every member of an ensemble."""
    errors: tuple[ErrorTable, ...]
    timings: tuple[Timing, ...]
    compute_seconds: float
    """Of everything that the run rests on, whether made tonight or found in the store."""
    model_uri: str
    """Address of the final student's artifact."""
    model_key: str
    made_with: dict[str, str | int | float | bool]
    """Device, precision, package versions of the final student."""
    made_at: str
    """When the final student was finished, ISO 8601 in UTC: a report made again says the same."""
    config: dict[str, Any]
    gate: Verdict | None = None
    """None where there is no registry to promote in."""
    champion: str | None = None
    """The registered version that the final student met; None where none reigned."""

    @property
    def final(self) -> SystemRow:
        return next(row for row in self.systems if row.role == "final")

    @property
    def rivals(self) -> tuple[SystemRow, ...]:
        """The baselines that the final student is compared with."""
        return tuple(row for row in self.systems if row.final_gain)


def verdict_text(verdict: Verdict, champion: str | None) -> str:
    """The gate's verdict in one sentence."""
    match verdict.outcome:
        case "passed":
            return f"The gate lets the final student take the place of the champion, version {champion}."
        case "first":
            return "The gate lets the final student become the first champion."
        case "reigns":
            return f"The final student is the champion already, version {champion}."
    place = f"take the place of the champion, version {champion}" if champion else "become the first champion"
    failed, made = len(verdict.refusals), len(verdict.reasons)
    return f"The gate does not let the final student {place}: {failed} of {made} checks failed."


def read_summary(path: Path) -> Summary:
    """Of a report's folder."""
    return Summary.model_validate_json((path / "summary.json").read_text(encoding="utf-8"))


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table(summary: Summary, most_metrics: int | None = None) -> Table:
    """The result table as text: scores in percent with their 95 % intervals, time in seconds; of the metrics
    the first so many, or all."""
    metrics = summary.metrics[:most_metrics]
    columns = ("", *(TITLES[metric] for metric in metrics), "rows", "seconds", "note")
    rows = tuple(
        (
            _title(row),
            *(with_interval(row.scores.get(metric)) for metric in metrics),
            _measured(row),
            f"{row.seconds:.0f}",
            row.note,
        )
        for row in summary.systems
    )
    return Table(columns, rows)


def with_interval(score: Score | None) -> str:
    """`89.6 [88.1, 91.0]`"""
    return "-" if score is None else f"{percent(score.value)} [{percent(score.low)}, {percent(score.high)}]"


def percent(value: float) -> str:
    """0.896 -> 89.6. Never `-0.0`."""
    return f"{round(100 * value, 1) + 0.0:.1f}"


def signed(gain: float) -> str:
    """0.021 -> +2.1, in percent points."""
    return f"{round(100 * gain, 1) + 0.0:+.1f}"


def p_text(p_value: float) -> str:
    """`p = 0.035`"""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def seconds_text(seconds: float) -> str:
    """`3 min 20 s`"""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def shortened(label: Label, most: int = 400) -> str:
    return label if len(label) <= most else f"{label[:most]} ..."


def _title(row: SystemRow) -> str:
    return f"{row.name} ({row.num_students} students)" if row.role == "stage" else row.name


def _measured(row: SystemRow) -> str:
    n = next((score.n for score in row.scores.values()), 0)
    return f"{row.measured_on} {n:,}" if row.measured_on else "-"
