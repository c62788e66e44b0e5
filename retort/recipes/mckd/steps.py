"""Builds the recipe's steps from its config. Each step gets the settings that it needs and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Literal

from retort.config import EnsembleConfig, GenerativeConfig, MckdConfig, RecordedConfig, TrainingConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data import fingerprint
from retort.data.partitions import Cells
from retort.models.weights import find_weights
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.records.result import Champion
from retort.report.mckd.step import ReportMckd
from retort.steps.cross_label import CrossLabel
from retort.steps.evaluate import EvaluateLabels, EvaluateStudent
from retort.steps.gate import Gate
from retort.steps.ingest import Ingest
from retort.steps.merge_labels import MergeLabels
from retort.steps.pseudolabel_ensemble import PseudolabelEnsemble
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.steps.pseudolabel_recorded import PseudolabelRecorded
from retort.steps.select import Select
from retort.steps.train_student import TrainStudent, student_options
from retort.tracking.mckd import TrackMckd

Role = Literal["labeled", "unlabeled", "test", "dev"]
"""A field of `data`."""


def ingest(config: MckdConfig, role: Role) -> Ingest:
    """Reads the source once to fingerprint it."""
    source, is_pool = getattr(config.data, role), role == "unlabeled"
    return Ingest(
        name=f"ingest/{role}",
        problem=config.problem,
        columns=config.data.columns.model_dump(),
        content=fingerprint(source, config.store.endpoint_url),
        gold="optional" if is_pool else "required",
        limit=config.data.limit if is_pool else None,
        source=source,
        endpoint_url=config.store.endpoint_url,
    )


def label_recorded(config: MckdConfig, name: str, teacher: RecordedConfig, pool: ArtifactRef) -> PseudolabelRecorded:
    return PseudolabelRecorded(
        name=name,
        problem=config.problem,
        completions=fingerprint(teacher.completions, config.store.endpoint_url),
        pool=pool,
        path=teacher.completions,
        endpoint_url=config.store.endpoint_url,
        min_success_ratio=teacher.min_success_ratio,
    )


def label_by_llm(config: MckdConfig, name: str, teacher: LlmTeacherConfig, data: Data) -> PseudolabelLlm:
    """Label the pool, and the labeled set too, so that the teacher can be scored."""
    return PseudolabelLlm.by(
        teacher,
        name=name,
        problem=config.problem,
        metric=config.metrics[0],
        pool=data.unlabeled,
        labeled=data.labeled,
        store=config.store,
    )


def merge_teachers(
    config: MckdConfig, ensemble: EnsembleConfig, members: Sequence[ArtifactRef], data: Data
) -> PseudolabelEnsemble:
    return PseudolabelEnsemble(
        name="stage0/pseudolabels",
        problem=config.problem,
        merge=ensemble.merge,
        asked=all(isinstance(member, LlmTeacherConfig) for member in ensemble.members),
        soft=config.has_soft_teacher,
        members=tuple(members),
        pool=data.unlabeled,
        labeled=data.labeled,
        kinds=[member.kind for member in ensemble.members],
    )


def train_student(
    config: MckdConfig,
    name: str,
    labels: ArtifactRef,
    *,
    cells: tuple[int, ...] | None = None,
    index: int = 0,
    siblings: int = 1,
    training: TrainingConfig | None = None,
    soft: bool = False,
    start: ArtifactRef | None = None,
    labeled: ArtifactRef | None = None,
) -> TrainStudent:
    """Train one student on `labels`: pseudolabels or gold-labeled examples.

    `cells` are the cells of the pool that it may see; None means all. `start` is the student whose weights it starts
    from, `student.model` by default. `labeled` is the labeled set, which may decide when training stops; it is omitted
    when training on that set itself.

    The seed depends only on the method's seed and `index`, so that student i of one stage and student i of the next
    start from the same weights and differ only in their labels.
    """
    student, training = config.student, training or config.student.training
    by_labeled = training.stopping is not None and training.stopping.by == "labeled"
    assert labeled or labels.kind == "examples" or not by_labeled, "pseudolabels are no labeled set"
    return TrainStudent(
        name=name,
        siblings=siblings,
        problem=config.problem,
        student=student.kind,
        weights=find_weights(student, config.store.server).identity,
        pretrained=student.weights == "pretrained",
        training=training,
        seed=config.method.seed + 1000 * index,
        cells=cells_of(config, cells),
        soft=soft,
        options=student_options(student, has_classes=config.problem.kind != "text"),
        labels=labels,
        start=start,
        stopping=labeled if by_labeled else None,
        model=student.model,
        revision=student.revision,
        endpoint_url=config.store.endpoint_url,
    )


def start_from(step: TrainStudent, champion: Champion) -> ArtifactRef | None:
    """The student whose weights `step` (which has no `start` yet) starts from: the champion.

    If the champion was trained on the same labels with the same settings, returns what the champion itself started
    from. The step is then the champion's own and is found in the store, so a night without new data trains nothing.
    """
    inputs = dict(champion.fingerprint["inputs"])
    own = inputs.pop("start", [])
    if {**champion.fingerprint, "inputs": inputs} != step.fingerprint:
        return champion.student
    return ArtifactRef(uri=f"students/{own[0]}", kind="students", key=own[0]) if own else None


def cross_label(
    config: MckdConfig,
    name: str,
    student: ArtifactRef,
    rows: ArtifactRef,
    *,
    cells: tuple[int, ...] | None = None,
    siblings: int = 1,
    probabilities: bool = False,
    min_success_ratio: float = 0.0,
) -> CrossLabel:
    """Label the `rows` in `cells`. `rows` are examples, or pseudolabels whose labels the student does not see."""
    return CrossLabel(
        name=name,
        siblings=siblings,
        problem=config.problem,
        student_kind=config.student.kind,
        max_length=config.student.training.max_length,
        writes_text=writes_text(config),
        cells=cells_of(config, cells),
        probabilities=probabilities,
        student=student,
        rows=rows,
        min_success_ratio=min_success_ratio,
    )


def writes_text(config: MckdConfig) -> bool:
    """Whether the student writes labels as text, token by token."""
    student = config.student
    return isinstance(student, GenerativeConfig) and student.form(has_classes=config.problem.kind != "text") == "text"


def cells_of(config: MckdConfig, cells: tuple[int, ...] | None) -> Cells | None:
    method = config.method
    return None if cells is None else Cells(of=method.partitions, seed=method.seed, only=list(cells))


def merge_labels(
    config: MckdConfig, name: str, previous: ArtifactRef, cross_labels: tuple[ArtifactRef, ...], *, soft: bool = False
) -> MergeLabels:
    return MergeLabels(
        name=name,
        problem=config.problem,
        merge=config.method.merge,
        soft=soft,
        previous=previous,
        cross_labels=cross_labels,
    )


def evaluate_student(
    config: MckdConfig,
    name: str,
    student: ArtifactRef,
    rows: ArtifactRef,
    *,
    siblings: int = 1,
    champion: Champion | None = None,
) -> EvaluateStudent:
    """Score a student on gold-labeled examples.

    If the student is the champion, pass `champion`: its kind and maximum length may differ from the config's.
    """
    return EvaluateStudent(
        name=name,
        siblings=siblings,
        problem=config.problem,
        metrics=config.metrics,
        resamples=config.evaluation.resamples,
        seed=config.method.seed,
        student_kind=champion.about.kind if champion else config.student.kind,
        max_length=champion.about.max_length if champion else config.student.training.max_length,
        writes_text=champion.about.writes_text if champion else writes_text(config),
        student=student,
        gold=rows,
    )


def evaluate_labels(config: MckdConfig, name: str, labels: ArtifactRef, pool: ArtifactRef) -> EvaluateLabels:
    """Score pseudolabels against the pool's own gold labels, if it has any. For the report only, never for a choice."""
    return _evaluate_labels(config, name, labels, pool, None)


def evaluate_own_labels(config: MckdConfig, name: str, labels: ArtifactRef, labeled: ArtifactRef) -> EvaluateLabels:
    """Score a teacher's labels for the labeled set, where each row was labeled with the others as demonstrations."""
    return _evaluate_labels(config, name, labels, labeled, "labeled")


def _evaluate_labels(
    config: MckdConfig, name: str, labels: ArtifactRef, gold: ArtifactRef, rows: Literal["labeled"] | None
) -> EvaluateLabels:
    return EvaluateLabels(
        name=name,
        problem=config.problem,
        metrics=config.metrics,
        resamples=config.evaluation.resamples,
        seed=config.method.seed,
        rows=rows,
        labels=labels,
        gold=gold,
    )


def select(
    config: MckdConfig, name: str, reigning: tuple[ArtifactRef, ...], challenger: tuple[ArtifactRef, ...]
) -> Select:
    """Compare two stages by their students' scores on the judging rows."""
    return Select(
        name=name,
        problem=config.problem,
        metric=config.metrics[0],
        selection=config.selection,
        resamples=config.evaluation.resamples,
        seed=config.method.seed,
        reigning=reigning,
        challenger=challenger,
    )


def gate(config: MckdConfig, result: MckdResult, reigning: tuple[ArtifactRef, ...] = ()) -> Gate:
    """`reigning` holds the champion's scores on the test rows; it is empty if there is no champion."""
    return Gate(
        name="gate",
        problem=config.problem,
        metric=config.metrics[0],
        gate=config.gate,
        student_kind=config.student.kind,
        max_length=config.student.training.max_length,
        resamples=config.evaluation.resamples,
        seed=config.method.seed,
        student=result.final_student,
        challenger=result.test_scores,
        reigning=reigning,
    )


def report(config: MckdConfig, result: MckdResult) -> ReportMckd:
    return ReportMckd(
        name="report",
        job=config.name,
        problem=config.problem,
        metrics=config.metrics,
        config=config.as_reported(),
        all=tuple(result.refs()),
        result=result,
    )


def track(config: MckdConfig, result: MckdResult, page: ArtifactRef, origin: Mapping[str, str]) -> TrackMckd:
    tracking = config.tracking
    assert tracking is not None, "only a tracked run is told to MLflow"
    return TrackMckd(
        name="tracking",
        job=config.name,
        uri=tracking.uri,
        experiment=tracking.experiment or config.name,
        config=config.as_reported(),
        all=tuple(result.refs()),
        report=page,
        origin=dict(origin),
        result=result,
    )
