"""The records that cross boundaries. All are frozen; rows carry an `example_id`, always."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Label = str
"""A label in its canonical, lossless text: whatever the problem's `encode` gives (JSON for slots, a class name
for classification). Rows store labels in this form; only the problem looks inside."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set. `label` is the gold label, or None in the unlabelled pool."""

    example_id: str
    text: str
    label: Label | None = None
    group: str | None = None
    """What scores are also given by: the question that an answer belongs to."""


@dataclass(frozen=True, slots=True)
class RecordedCompletion:
    """What a teacher wrote for one example, raw."""

    example_id: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A completion that is no label: a typed outcome, kept with its raw text."""

    reason: str
    """A short code, counted in reports: `unknown-slot`, `words-not-in-request`, `unbalanced-brackets` ..."""
    detail: str
    """One sentence for people, naming the offending part."""
    raw: str


@dataclass(frozen=True, slots=True)
class Pseudolabel:
    """A label that a labeler (the teacher, or a student) gave to an example of the pool."""

    example_id: str
    label: Label
    confidence: float
    """In [0, 1]; 1.0 where the labeler does not say."""
    labeler: str


class Record(BaseModel):
    """Base of the records that travel through Prefect and into manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(Record):
    """Where an artifact lies: all that ever travels between tasks."""

    uri: str
    kind: str
    key: str
    rows: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    """The few scalars that a flow steers by (a verdict), so that it needs no I/O."""


class Score(Record):
    """A metric's value with what it rests on."""

    metric: str
    value: float
    low: float
    """Lower end of the 95 % percentile-bootstrap interval over rows."""
    high: float
    n: int
    """Rows scored."""


Verb = Literal[
    "ingest",
    "pseudolabel",
    "train-student",
    "cross-label",
    "merge-labels",
    "evaluate",
    "select",
    "gate",
    "report",
    "track",
    "gather-probabilities",
    "train-tiny",
    "train-small",
    "predict",
    "score",
    "time-students",
    "export-student",
    "report-scores",
    "track-scores",
]


class Step(Record):
    """One unit of work, described completely before it is done: its key is known without running anything.

    The key is the sha256 of the canonical JSON of (verb, version, params, keys of the inputs). `name`,
    `knobs` and `siblings` are not in it: two runs that need the same work share it, whatever they call it.
    """

    name: str
    """Unique in its run: `stage1/student-0`."""
    verb: Verb
    version: int
    """Bumped in the stage's module when its meaning changes."""
    kind: str
    """The artifact's kind, a folder in the store: `examples`, `pseudolabels`, `students` ..."""
    params: dict[str, Any]
    """The config fields that change the result, JSON values only."""
    inputs: dict[str, tuple[ArtifactRef, ...]] = Field(default_factory=dict)
    knobs: dict[str, Any] = Field(default_factory=dict)
    """What the maker needs beside, and what does not change the result: addresses, limits that only fail."""
    siblings: int = 1
    """How many stages of this kind run side by side; decides threads, so that a resumed run repeats exactly."""

    @property
    def made_of(self) -> dict[str, Any]:
        """What the key is the digest of; kept in the manifest, so that a MISS can name what changed."""
        inputs = {role: [ref.key for ref in refs] for role, refs in sorted(self.inputs.items())}
        return {"verb": self.verb, "version": self.version, "params": self.params, "inputs": inputs}

    @property
    def key(self) -> str:
        return digest(self.made_of)

    def input(self, role: str) -> ArtifactRef:
        """The only artifact of a role."""
        (ref,) = self.inputs[role]
        return ref


class Performed(Record):
    """A stage as a run met it."""

    name: str
    status: Literal["HIT", "MADE"]
    seconds: float
    """Wall time in this run."""
    scores: dict[str, float] = Field(default_factory=dict)


class Data(Record):
    """The four roles of gold and unlabelled rows, ingested."""

    labeled: ArtifactRef
    unlabeled: ArtifactRef
    test: ArtifactRef
    judge: ArtifactRef
    """The labelled set, or the dev set where the config says so."""


class StageResult(Record):
    """Stage s: k students trained on the labels of stage s-1, and what they scored."""

    stage: int
    students: tuple[ArtifactRef, ...]
    test_scores: tuple[ArtifactRef, ...]
    judge_scores: tuple[ArtifactRef, ...]
    selection: ArtifactRef | None = None
    """The comparison with the round before; None for the first, or where labels need not prove themselves."""


class Champion(Record):
    """The registered student that a new one must beat."""

    model: str
    """The registered model's name."""
    version: str
    student: ArtifactRef
    made_of: dict[str, Any]
    """From the student's manifest."""


class MckdResult(Record):
    """Everything that a run made, as references."""

    data: Data
    labels: tuple[ArtifactRef, ...]
    """Of stage 0 (the teacher), 1, ...: the last ones may have been rejected."""
    label_scores: tuple[ArtifactRef, ...]
    """Of each of `labels` against the pool's own gold; without rows where it has none."""
    teacher_scores: ArtifactRef | None
    """Of the teacher on the test rows, where it can be asked."""
    teacher_own_scores: ArtifactRef | None = None
    """Of a teacher that is asked row by row, on the labelled set: each row with the others as demonstrations."""
    member_scores: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Of each member of an ensemble, by `teacher-0`: on the labelled set, else on the pool's own gold."""
    rounds: tuple[StageResult, ...]
    kept_stage: int
    """The final student is trained on the labels of stage `kept_stage - 1`; 1 is vanilla distillation."""
    final_student: ArtifactRef
    final_scores: ArtifactRef
    baselines: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Scores on the test rows, by the baseline's name."""
    reigning: Champion | None = None
    """The champion that the final student was compared with; None where none reigned."""
    reigning_scores: ArtifactRef | None = None
    """Of the champion on the same test rows."""
    verdict: ArtifactRef | None = None
    """The gate's; None where the config has no registry to promote in."""

    def refs(self) -> list[ArtifactRef]:
        """Every artifact, each once, in the order of the work."""
        rounds = [ref for r in self.rounds for ref in (*r.students, *r.test_scores, *r.judge_scores, r.selection)]
        data = [self.data.labeled, self.data.unlabeled, self.data.test, self.data.judge]
        final = [self.final_student, self.final_scores, *self.baselines.values(), self.reigning_scores, self.verdict]
        teachers = [self.teacher_scores, self.teacher_own_scores, *self.member_scores.values()]
        every = [*data, *self.labels, *self.label_scores, *teachers, *rounds, *final]
        return list({ref.key: ref for ref in every if ref is not None}.values())


class SoftLabelResult(Record):
    """Everything that a run of the score flow made, as references. Tests and arms by their names."""

    train: ArtifactRef
    dev: ArtifactRef
    tests: dict[str, ArtifactRef]
    pool: ArtifactRef | None
    """Rows without gold, for the arm `with-pool`."""
    train_probabilities: ArtifactRef
    """The teacher's, of a teacher that was not trained on the row."""
    pool_probabilities: ArtifactRef | None
    teacher: ArtifactRef | None
    """The fine-tuned one, trained on all training rows; None where it is none of ours."""
    small: tuple[ArtifactRef, ...]
    """Of the arm `tinybert`, one for each seed."""
    grids: dict[str, ArtifactRef]
    """Of the arms with a tiny student: what was tried, and the students of the setting that was best on dev."""
    student: ArtifactRef
    """The exported one."""
    scores: dict[str, dict[str, ArtifactRef]]
    """By arm (also `teacher`), then by rows: dev and each test set."""
    times: ArtifactRef
    """Latency and throughput."""

    def refs(self) -> list[ArtifactRef]:
        """Every artifact, each once, in the order of the work."""
        data = [self.train, self.dev, *self.tests.values(), self.pool]
        teachers = [self.train_probabilities, self.pool_probabilities, self.teacher, *self.small]
        scores = [ref for by_rows in self.scores.values() for ref in by_rows.values()]
        every = [*data, *teachers, *self.grids.values(), self.student, *scores, self.times]
        return list({ref.key: ref for ref in every if ref is not None}.values())


def digest(value: object) -> str:
    """sha256 of the canonical JSON (sorted keys, no white space, UTF-8) of `value`, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
