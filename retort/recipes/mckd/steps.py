"""Builds the recipe's steps from its config. Each step gets the settings that it needs and nothing else."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Literal

from retort.config import (
    ColumnsConfig,
    EnsembleConfig,
    GoldTrainingConfig,
    MckdConfig,
    RecordedConfig,
    SelectionConfig,
    Source,
    TrainingConfig,
)
from retort.config.teachers import LlmTeacherConfig
from retort.data import fingerprint
from retort.data.class_names import with_tag_names
from retort.data.partitions import Cells, label_cells, train_cells
from retort.models.weights import find_weights
from retort.recipes.mckd.nights import Night
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.records.result import Champion
from retort.report.mckd.step import ReportMckd
from retort.steps.cross_label import CrossLabel
from retort.steps.cross_validate import CrossValidate, GatherFolds
from retort.steps.evaluate import EvaluateLabels, EvaluateStudent
from retort.steps.gate import Gate
from retort.steps.hygiene import CheckHygiene
from retort.steps.ingest import Ingest
from retort.steps.merge_labels import MergeLabels
from retort.steps.pseudolabel_ensemble import PseudolabelEnsemble
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.steps.pseudolabel_recorded import PseudolabelRecorded
from retort.steps.select import Select
from retort.steps.train_student import TrainStudent, student_options
from retort.tracking.mckd import TrackMckd

RIVALS = ("vanilla-kd", "vanilla-fine-tuned", "supervised", "teacher")
"""What makes the final student pointless if it is better: baselines, and a teacher that labels test rows for free."""
Role = Literal["labeled", "unlabeled", "test", "dev"]
"""A field of `data`."""


def ingest(config: MckdConfig, role: Role) -> Ingest:
    (step,) = ingests(config, [role])
    return step


def ingests(config: MckdConfig, roles: Iterable[Role]) -> Iterator[Ingest]:
    """A step for each role. Reads each source once to fingerprint it; for the pool, the labeled set too."""
    content_of = cache(partial(fingerprint, endpoint_url=config.store.endpoint_url))
    return (_ingest(config, role, content_of) for role in roles)


def _ingest(config: MckdConfig, role: Role, content_of: Callable[[Source], str]) -> Ingest:
    source, is_pool = getattr(config.data, role), role == "unlabeled"
    return Ingest(
        name=f"ingest/{role}",
        problem=config.problem,
        columns=columns_of(config, source).model_dump(),
        content=content_of(source),
        gold="optional" if is_pool else "required",
        limit=config.data.limit if is_pool else None,
        without=content_of(config.data.labeled) if is_pool else None,
        labeled=config.data.labeled if is_pool else None,
        source=source,
        endpoint_url=config.store.endpoint_url,
    )


def columns_of(config: MckdConfig, source: Source) -> ColumnsConfig:
    """The columns, with the names of tags that are numbers if the source has a card that says them."""
    if config.problem.kind not in ("slots", "entities"):
        return config.data.columns
    return with_tag_names(config.data.columns, source, config.store.endpoint_url)


def label_recorded(config: MckdConfig, name: str, teacher: RecordedConfig, pool: ArtifactRef) -> PseudolabelRecorded:
    return PseudolabelRecorded(
        name=name,
        problem=config.problem,
        completions=fingerprint(teacher.completions, config.store.endpoint_url),
        pool=pool,
        path=teacher.completions,
        endpoint_url=config.store.endpoint_url,
        min_success_ratio=teacher.min_success_ratio,
        rationales=teacher.rationales,
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
    stage: int | None = None,
    cells: Cells | None = None,
    index: int = 0,
    siblings: int = 1,
    training: TrainingConfig | None = None,
    start: ArtifactRef | None = None,
    labeled: ArtifactRef | None = None,
) -> TrainStudent:
    """Train one student on `labels`: the pseudolabels that `stage` trains on, or gold-labeled examples (None).

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
        cells=cells,
        soft=stage is not None and is_soft(config, stage),
        min_confidence=config.min_confidence if stage == 1 else 0.0,
        options=student_options(student, has_classes=config.has_class_tokens),
        labels=labels,
        start=start,
        stopping=labeled if by_labeled else None,
        model=student.model,
        revision=student.revision,
        endpoint_url=config.store.endpoint_url,
    )


def is_soft(config: MckdConfig, stage: int) -> bool:
    """Whether a stage trains on probabilities: the teacher's in stage 1, the students' in later stages."""
    return config.cross_labels == "soft" if stage > 1 else config.has_soft_teacher


def fine_tune(
    config: MckdConfig, name: str, student: ArtifactRef, data: Data, *, index: int = 0, siblings: int = 1
) -> TrainStudent:
    """Train a student further, on the labeled set."""
    training = gold_training(config, config.fine_tuning.epochs)
    step = train_student(config, name, data.labeled, index=index, siblings=siblings, training=training, start=student)
    return step.model_copy(update={"interpolation": config.fine_tuning.interpolation})


def cross_validate(
    config: MckdConfig, name: str, student: ArtifactRef, data: Data, *, part: int = 0, parts: int = 1
) -> CrossValidate:
    """Score what fine-tuning would make of a student, on every `parts`-th fold of the labeled set itself."""
    tuning, folds = dict(fine_tune(config, name, student, data, siblings=parts)), config.fine_tuning.folds
    metrics, resamples = config.metrics, config.evaluation.resamples
    only = tuple(range(part, folds, parts))
    return CrossValidate(**tuning, folds=folds, only=only, metrics=metrics, resamples=resamples)


def gather_folds(config: MckdConfig, name: str, parts: tuple[ArtifactRef, ...], data: Data) -> GatherFolds:
    """Score what fine-tuning would make of a student on the whole labeled set."""
    return GatherFolds(
        name=name,
        problem=config.problem,
        metrics=config.metrics,
        resamples=config.evaluation.resamples,
        seed=config.method.seed,
        parts=parts,
        gold=data.labeled,
    )


def gold_training(config: MckdConfig, epochs: float) -> TrainingConfig:
    """How to train on the labeled set: as on pseudolabels, but for so many epochs."""
    settings = {**dict(config.student.training), "epochs": epochs, "min_updates": 0}
    return GoldTrainingConfig.model_validate(
        {**settings, "distillation": None, "rationale_weight": 0.0, "stopping": None}
    )


def start_from(step: TrainStudent, champion: Champion) -> ArtifactRef | None:
    """The student whose weights `step` (which has no `start` yet) starts from: the champion.

    If the champion was trained on the same labels with the same settings, before it was fine-tuned, returns what that
    training itself started from. The step is then the champion's own and is found in the store, so a night without new
    data trains nothing.
    """
    inputs = dict(champion.trained["inputs"])
    own = inputs.pop("start", [])
    if {**champion.trained, "inputs": inputs} != step.fingerprint:
        return champion.student
    return ArtifactRef(uri=f"students/{own[0]}", kind="students", key=own[0]) if own else None


def cross_label(
    config: MckdConfig,
    name: str,
    student: ArtifactRef,
    rows: ArtifactRef,
    *,
    cells: Cells | None = None,
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
        writes_text=config.form == "text",
        cells=cells,
        probabilities=probabilities,
        student=student,
        rows=rows,
        min_success_ratio=min_success_ratio,
    )


def seen_cells(config: MckdConfig, student: int) -> Cells:
    """The cells of the pool that student number `student`, in [0, partitions), is trained on."""
    method = config.method
    return _cells(config, train_cells(method.scheme, method.partitions, student))


def unseen_cells(config: MckdConfig, student: int) -> Cells:
    """The cells of the pool that the student labels."""
    method = config.method
    return _cells(config, label_cells(method.scheme, method.partitions, student))


def _cells(config: MckdConfig, only: tuple[int, ...]) -> Cells:
    return Cells(of=config.method.partitions, seed=config.method.seed, only=list(only))


def merge_labels(
    config: MckdConfig, name: str, data: Data, previous: ArtifactRef, cross_labels: tuple[ArtifactRef, ...]
) -> MergeLabels:
    return MergeLabels(
        name=name,
        problem=config.problem,
        merge=config.method.merge,
        soft=config.cross_labels == "soft",
        pool=data.unlabeled,
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
        writes_text=champion.about.writes_text if champion else config.form == "text",
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


def is_accepted(verdict: ArtifactRef) -> bool:
    """Whether a selection accepted. A plan cannot know the verdict yet, so it goes on as if it did."""
    return verdict.metrics.get("accepted", 1.0) == 1.0


def select_fine_tuning(config: MckdConfig, name: str, before: ArtifactRef, after: ArtifactRef) -> Select:
    """Compare a student's scores on the judging rows with those after fine-tuning."""
    selection = SelectionConfig(confidence=config.fine_tuning.confidence)
    return select(config, name, (before,), (after,)).model_copy(update={"selection": selection})


def gate(config: MckdConfig, result: MckdResult, reigning: tuple[ArtifactRef, ...] = ()) -> Gate:
    """`reigning` holds the champion's scores on the test rows; it is empty if there is no champion."""
    scored = {**result.baselines, **({"teacher": result.teacher_scores} if result.teacher_scores else {})}
    rivals = {name: ref for name in RIVALS if (ref := scored.get(name)) and ref.key != result.final_scores.key}
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
        rivals=tuple(rivals.values()),
        rival_names=tuple(rivals),
        hygiene=result.hygiene if config.gate.row_limits else None,
    )


def hygiene(config: MckdConfig, result: MckdResult, last: Night | None) -> CheckHygiene:
    """`last` is the night to compare with; None if there is none."""
    return CheckHygiene(
        name="hygiene",
        problem=config.problem,
        pool=result.data.unlabeled,
        labeled=result.data.labeled,
        test=result.data.test,
        labels=result.labels[0],
        cross_labels=result.labels[1] if len(result.labels) > 1 else None,
        last_pool=last.pool if last else None,
        last_labels=last.labels if last else None,
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
