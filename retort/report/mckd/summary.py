"""The facts of a run of the MCKD recipe."""

from typing import Literal

from pydantic import Field

from retort.config import ERRORS, Metric
from retort.metrics.format import LESS_IS_BETTER, TITLES, gain_text, score_text, with_interval
from retort.records.base import Record, Score, digest
from retort.report.base import Summary, Table
from retort.report.quality import ErrorTable

ScoresByMetric = dict[str, Score]
"""Scores by metric, in the order of the config's metrics."""

Use = Literal["final student", "rejected", "replaced", "not needed"]
"""What happened to a stage's labels."""

Role = Literal["teacher", "stage", "final", "champion", "baseline"]


class FinalGain(Record):
    """The final student compared with a baseline on the same test rows, paired."""

    value: float
    """How much better the final student's score is than the baseline's, in the deciding metric."""
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    only_baseline: int
    """Rows whose whole label only the baseline gets right."""
    only_final: int
    p_value: float
    """McNemar's p for these two counts."""


class SystemRow(Record):
    """One line of the result table: a labeler, and how well it does."""

    role: Role
    name: str
    """`teacher`, `stage 1`, `final student`, `champion`, or the baseline's name."""
    stage: int | None = None
    num_students: int = 1
    measured_on: Literal["test", "pool", "labelled"] | None = None
    """pool: a teacher's labels against the pool's gold labels. labelled: its labels for the labeled set, each row
    labeled with the others as demonstrations."""
    scores: ScoresByMetric = Field(default_factory=dict)
    """Means over the students; empty if nothing could be measured."""
    judge_scores: ScoresByMetric = Field(default_factory=dict)
    """For a stage: scores on the rows that stages are judged on."""
    seconds: float = 0.0
    """Compute spent on it that no row above needed."""
    note: str = ""
    final_gain: FinalGain | None = None
    """For a baseline, unless it is the same student as the final one."""
    rejected: bool = False
    """For a stage: whether its students lost against those of the previous stage."""


class ChangedExample(Record):
    """A row whose label a stage changed. Labels are rendered for people."""

    example_id: str
    text: str
    old: str
    new: str
    gold: str | None
    verdict: Literal["fixed", "broken", "still wrong"] | None
    """None if the gold label is unknown."""
    old_probability: float | None
    """The probability that the students gave the old label (geometric mean over its units); None for hard labels."""
    num_parts_changed: int
    confidence: float
    labeler: str


State = Literal["right", "wrong", "none"]
"""Of a row's label, against the gold; none: it has no label."""


class Flow(Record):
    """Rows with a gold label, by what became of their labels."""

    before: State
    after: State
    rows: int


class LabelChange(Record):
    """How a stage's labels differ from the previous stage's."""

    changed: int
    kept: int
    """Rows whose new label was not confident enough to replace the old one."""
    new: int = 0
    """Rows that had no label before."""
    known: int
    """Changed rows whose gold label is known: `fixed + broken + still_wrong`."""
    fixed: int
    broken: int
    still_wrong: int
    order: Literal["old-label-probability", "parts-changed"]
    """What `examples` are sorted by."""
    examples: tuple[ChangedExample, ...]
    flows: tuple[Flow, ...] = ()
    """Empty if the pool has no gold."""


class LabelStage(Record):
    """The pool's labels after a stage; stage 0 is the teacher's."""

    stage: int
    fine_tuned: bool = False
    """Whether the stage's students were fine-tuned on the labeled set before they gave these labels."""
    rows: int
    used: Use
    quality: ScoresByMetric
    """Scores against the pool's gold labels, if it has any; a row without a label counts as wrong."""
    change: LabelChange | None
    """None for stage 0."""

    @property
    def flows(self) -> tuple[Flow, ...]:
        return self.change.flows if self.change else ()

    @property
    def name(self) -> str:
        return f"{self.stage}{' (teacher)' if self.stage == 0 else ', fine-tuned' if self.fine_tuned else ''}"

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


class TeacherFacts(Record):
    """What a teacher cost, and how good it is as far as is known."""

    name: str
    """`teacher`, or `teacher-0` and so on in an ensemble."""
    lines: tuple[tuple[str, str], ...]
    """(what, value), as text."""
    metrics: dict[str, float]
    """For MLflow: tokens, money, seconds and calibration, from the run that made the labels."""


class Timing(Record):
    """Times of one kind of artifact in one group."""

    group: str
    what: str
    count: int
    seconds: float
    """Compute time, summed, even for artifacts made side by side."""
    examples_per_second: float | None
    """Mean over the steps that trained a student."""


class DataSet(Record):
    role: str
    source: str
    key: str
    rows: int
    gold: int
    """Rows with a gold label."""


class MckdSummary(Summary):
    picture_key = "scores-by-stage"

    problem: str
    metric: Metric
    """The deciding metric."""
    stages_asked: int
    kept_stage: int
    reason: str
    """Why the final student is trained on the labels of this stage, and why it was fine-tuned or not."""
    systems: tuple[SystemRow, ...]
    data: tuple[DataSet, ...]
    labels: tuple[LabelStage, ...]
    failures: LabelFailures
    teachers: tuple[TeacherFacts, ...]
    """LLM teachers, and every member of an ensemble."""
    errors: tuple[ErrorTable, ...]
    timings: tuple[Timing, ...]

    @property
    def final(self) -> SystemRow:
        return next(row for row in self.systems if row.role == "final")

    @property
    def rivals(self) -> tuple[SystemRow, ...]:
        """The baselines that the final student is compared with."""
        return tuple(row for row in self.systems if row.final_gain)

    @property
    def gained(self) -> str:
        """What the final student gains over others, as a sentence; empty if there is nothing to compare it with."""
        metric, own = self.metric, self.final.scores[self.metric]
        gains = [
            f"{gain_text(metric, gain.value)} ({gain_text(metric, gain.low)} to {gain_text(metric, gain.high)}) over "
            f"{row.name}"
            for row in self.systems
            if (gain := row.final_gain)
        ]
        teacher = next((row for row in self.systems if row.role == "teacher" and metric in row.scores), None)
        if teacher:
            value = teacher.scores[metric].value
            where = {"test": "on the test rows", "pool": "on the pool"}.get(
                teacher.measured_on or "", "on the labeled set"
            )
            more = value - own.value if metric in ERRORS else own.value - value
            gains.insert(0, f"{gain_text(metric, more)} over the teacher ({score_text(metric, value)} {where})")
        if not gains:
            return ""
        return f"The final student scores {score_text(metric, own.value)} {TITLES[metric]}: {'; '.join(gains)}."

    @property
    def measures_errors(self) -> bool:
        """Whether the deciding metric is an error, in the unit of the labels."""
        return self.metric in ERRORS

    @property
    def unit(self) -> str:
        """What the numbers of the result table are."""
        errors = LESS_IS_BETTER if ERRORS & set(self.metrics) else ""
        return f"In percent, with 95 % intervals (bootstrap over rows). {errors}".strip()

    @property
    def conclusion(self) -> str:
        return f"{self.gained} {self.reason}".strip()

    @property
    def data_digest(self) -> str:
        return digest([[data.role, data.key] for data in self.data])

    def tables(self) -> dict[str, Table]:
        return {"scores": table(self)}

    def final_as_json(self) -> dict[str, object]:
        scores = {metric: score.model_dump(exclude={"metric"}) for metric, score in self.final.scores.items()}
        return {"stage": self.kept_stage, "scores": scores, "model": self.model_uri}


def table(summary: MckdSummary, most_metrics: int | None = None) -> Table:
    """The result table as text, with all metrics or the first `most_metrics`: scores in percent with their 95 %
    intervals, times in seconds."""
    metrics = summary.metrics[:most_metrics]
    columns = ("arm", *(TITLES[metric] for metric in metrics), "rows", "seconds")
    rows = tuple(
        (
            row.name,
            *(with_interval(row.scores.get(metric)) for metric in metrics),
            _measured(row),
            f"{row.seconds:.0f}",
        )
        for row in summary.systems
    )
    return Table(columns, rows)


def title(row: SystemRow) -> str:
    return f"{row.name} ({row.num_students} students)" if row.role == "stage" else row.name


def _measured(row: SystemRow) -> str:
    n = next((score.n for score in row.scores.values()), 0)
    return f"{row.measured_on} {n:,}" if row.measured_on else "-"
