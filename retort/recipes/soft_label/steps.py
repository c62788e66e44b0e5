"""Builds the recipe's steps from its config. Each step gets the settings that it needs and nothing else."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from retort.config import SequenceClassificationConfig, Source, TrainingConfig
from retort.config.soft_label import Arm, CrossEncoderConfig, FoldsConfig, ProbabilitiesConfig, SoftLabelConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data import fingerprint
from retort.data.partitions import Cells
from retort.models.weights import find_weights
from retort.records.base import ArtifactRef
from retort.records.result import Champion
from retort.records.soft_label import SoftLabelResult
from retort.report.soft_label.step import ReportSoftLabel
from retort.steps.cross_label import CrossLabel
from retort.steps.evaluate import EvaluateStudent
from retort.steps.export_student import ExportStudent
from retort.steps.gate import Gate
from retort.steps.gather_probabilities import GatherLabels, GatherRecorded
from retort.steps.ingest import FoldRows, Ingest
from retort.steps.predict import PredictBaseline, PredictGrid
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.steps.score_predictions import ScorePredictions
from retort.steps.time_students import TimeStudents
from retort.steps.train_grid import TrainGrid
from retort.steps.train_student import TrainStudent
from retort.steps.train_tinybert import TrainTinyBert
from retort.tracking.soft_label import TrackSoftLabel

LABEL_SMOOTHING = 0.1
"""For the arm `label-smoothing`: the share of each row's gold label that is spread over all classes."""


def ingest(config: SoftLabelConfig, role: str) -> Ingest:
    (step,) = ingests(config, [role])
    return step


def ingests(config: SoftLabelConfig, roles: Iterable[str]) -> Iterator[Ingest]:
    """A step for each role: train, dev, unlabeled, or the name of one of `data.tests`. Reads each source once to
    fingerprint it.

    Roles that are folds of the training file are read from that file; the remaining folds are the training rows.
    """
    content_of = cache(partial(fingerprint, endpoint_url=config.store.endpoint_url))
    return (_ingest(config, role, content_of) for role in roles)


def _ingest(config: SoftLabelConfig, role: str, content_of: Callable[[Source], str]) -> Ingest:
    data = config.data
    part = data.tests[role] if role in data.tests else getattr(data, role)
    source = data.train if isinstance(part, FoldsConfig) else part
    folds = _folds_of(config, role)
    unused = {"fold"} if folds is None else set()
    return Ingest(
        name=f"ingest/{role}",
        problem=config.problem,
        columns=data.columns.model_dump(exclude=unused),
        content=content_of(source),
        gold="optional" if role == "unlabeled" else "required",
        limit=data.limit if role == "train" else None,
        folds=folds,
        source=source,
        endpoint_url=config.store.endpoint_url,
    )


def _folds_of(config: SoftLabelConfig, role: str) -> FoldRows | None:
    """The rows of the training file that a role uses. None means all rows of its own source."""
    data = config.data
    parts = [part for part in (data.dev, data.unlabeled) if isinstance(part, FoldsConfig)]
    taken = sorted(number for part in parts for number in part.folds)
    if role == "train":
        return FoldRows(column=data.columns.fold, numbers=taken, inside=False) if taken else None
    part = None if role in data.tests else getattr(data, role)
    if not isinstance(part, FoldsConfig):
        return None
    return FoldRows(column=data.columns.fold, numbers=sorted(part.folds), inside=True)


@dataclass(frozen=True)
class Encoder:
    """An encoder that reads the whole text, trained on gold labels: the fine-tuned teacher, or the arm `tinybert`."""

    config: SoftLabelConfig
    student: SequenceClassificationConfig

    @classmethod
    def of(cls, config: SoftLabelConfig, model: str, training: TrainingConfig) -> "Encoder":
        teacher = config.teacher
        named = {"kind": "sequence-classification", "model": model, "training": dict(training)}
        if isinstance(teacher, CrossEncoderConfig) and teacher.model == model:
            named |= {"revision": teacher.revision, "weights": teacher.weights}
        return cls(config, SequenceClassificationConfig.model_validate(named))

    def train(
        self, name: str, train: ArtifactRef, *, cells: Cells | None = None, layers: int | None = None, index: int = 0
    ) -> TrainStudent:
        """`cells` selects the training rows that the encoder may see. `layers` keeps only its first layers; None keeps
        all."""
        fields: dict[str, Any] = {
            "name": name,
            "problem": self.config.problem,
            "student": self.student.kind,
            "weights": find_weights(self.student, self.config.store.server).identity,
            "pretrained": self.student.weights == "pretrained",
            "training": self.student.training,
            "seed": self.config.seed + 1000 * index,
            "cells": cells,
            "soft": False,
            "labels": train,
            "model": self.student.model,
            "revision": self.student.revision,
            "endpoint_url": self.config.store.endpoint_url,
        }
        return TrainStudent(**fields) if layers is None else TrainTinyBert(**fields, layers=layers)

    def label(self, name: str, encoder: ArtifactRef, rows: ArtifactRef, cells: Cells | None = None) -> CrossLabel:
        """Label `rows`, with probabilities. `cells` selects which of them."""
        return CrossLabel(
            name=name,
            problem=self.config.problem,
            student_kind=self.student.kind,
            max_length=self.student.training.max_length,
            cells=cells,
            probabilities=True,
            student=encoder,
            rows=rows,
        )


def label_by_llm(
    config: SoftLabelConfig, name: str, teacher: LlmTeacherConfig, rows: ArtifactRef, dev: ArtifactRef
) -> PseudolabelLlm:
    """Demonstrations come from the dev rows, so each dev row is labeled without itself among them."""
    metric = config.metrics[0]
    return PseudolabelLlm.by(
        teacher, name=name, problem=config.problem, metric=metric, pool=rows, labeled=dev, store=config.store
    )


def gather_labels(
    config: SoftLabelConfig, name: str, rows: ArtifactRef, labels: tuple[ArtifactRef, ...]
) -> GatherLabels:
    return GatherLabels(name=name, problem=config.problem, rows=rows, labels=labels)


def gather_recorded(
    config: SoftLabelConfig, teacher: ProbabilitiesConfig, rows: Mapping[str, ArtifactRef]
) -> dict[str, GatherRecorded]:
    """A step for the rows of each role. The file may have probabilities for none of them, but for training rows."""
    content = fingerprint(teacher.probabilities, config.store.endpoint_url)
    return {
        role: GatherRecorded(
            name=f"teacher/{role}",
            problem=config.problem,
            content=content,
            rows=ref,
            file=teacher.probabilities,
            endpoint_url=config.store.endpoint_url,
            needed=role == "train",
        )
        for role, ref in rows.items()
    }


def train_grid(
    config: SoftLabelConfig,
    arm: Arm,
    train: ArtifactRef,
    dev: ArtifactRef,
    probabilities: ArtifactRef | None = None,
    pool: tuple[ArtifactRef, ArtifactRef] | None = None,
) -> TrainGrid:
    """`probabilities` are the teacher's, for the training rows. `pool` is (rows without gold labels, the teacher's
    probabilities for them)."""
    grid = config.grid
    rows, pool_probabilities = pool or (None, None)
    return TrainGrid(
        name=f"{arm}/students",
        problem=config.problem,
        fields=config.data.columns.text,
        student=config.student,
        settings=settings_of(config, arm),
        label_smoothing=LABEL_SMOOTHING if arm == "label-smoothing" else None,
        seeds=[config.seed + index for index in range(grid.seeds)],
        train=train,
        dev=dev,
        probabilities=probabilities,
        pool=rows,
        pool_probabilities=pool_probabilities,
    )


def settings_of(config: SoftLabelConfig, arm: Arm) -> list[dict[str, Any]]:
    """The settings that the arm tries, each as the fields of `Setting` other than the seed."""
    grid, temperatures = config.grid, config.grid.distillation_temperature
    both = [
        {
            "soft_weight": weight,
            "distillation_temperature": temperature,
            **({} if grid.lambda_end is None else {"soft_weight_end": weight * grid.lambda_end}),
        }
        for weight in grid.lambdas
        for temperature in temperatures
    ]
    match arm:
        case "hard":
            return [{}]
        case "label-smoothing":
            return [{"soft_weight": 1.0, "hard": False}]
        case "soft-only":
            return [{"soft_weight": 1.0, "hard": False, "distillation_temperature": t} for t in temperatures]
        case "only-where-right":
            return [{**setting, "only_where_right": True} for setting in both]
    return both


def predict_grid(config: SoftLabelConfig, name: str, grid: ArtifactRef, rows: ArtifactRef) -> PredictGrid:
    return PredictGrid(
        name=name,
        problem=config.problem,
        fields=config.data.columns.text,
        student=config.student,
        grid=grid,
        rows=rows,
    )


def predict_baseline(
    config: SoftLabelConfig, name: str, arm: Arm, train: ArtifactRef, rows: ArtifactRef
) -> PredictBaseline:
    assert arm in ("tfidf", "majority"), "the other arms have students"
    fields = config.data.columns.text
    return PredictBaseline(
        name=name, problem=config.problem, fields=fields, arm=arm, seed=config.seed, train=train, rows=rows
    )


def score(
    config: SoftLabelConfig, name: str, predictions: tuple[ArtifactRef, ...], gold: ArtifactRef
) -> ScorePredictions:
    """`predictions` is either one artifact with all seeds or one artifact per seed."""
    return ScorePredictions(
        name=name,
        problem=config.problem,
        metrics=config.metrics,
        resamples=config.resamples,
        seed=config.seed,
        predictions=predictions,
        gold=gold,
    )


def export_student(config: SoftLabelConfig, grids: Mapping[str, ArtifactRef]) -> ExportStudent:
    return ExportStudent(
        name="final/student",
        problem=config.problem,
        student=config.student,
        fields=config.data.columns.text,
        arms=list(grids),
        grids=tuple(grids.values()),
    )


def evaluate(
    config: SoftLabelConfig, name: str, student: ArtifactRef, rows: ArtifactRef, champion: Champion | None = None
) -> EvaluateStudent:
    """Score the exported student, or the champion if one is given."""
    return EvaluateStudent(
        name=name,
        problem=config.problem,
        metrics=config.metrics,
        resamples=config.resamples,
        seed=config.seed,
        student_kind=champion.about.kind if champion else config.student.kind,
        max_length=champion.about.max_length if champion else config.student.max_words,
        student=student,
        gold=rows,
    )


def time_students(
    config: SoftLabelConfig,
    student: ArtifactRef,
    teacher: ArtifactRef | None,
    tinybert: ArtifactRef | None,
    rows: ArtifactRef,
) -> TimeStudents:
    lengths: dict[str, int] = {}
    if tinybert is not None:
        lengths["tinybert"] = config.tinybert.training.max_length
    if teacher is not None and isinstance(config.teacher, CrossEncoderConfig):
        lengths["teacher"] = config.teacher.training.max_length
    return TimeStudents(
        name="final/times",
        problem=config.problem,
        fields=config.data.columns.text,
        max_length=lengths,
        student=student,
        teacher=teacher,
        tinybert=tinybert,
        rows=rows,
    )


def gate(config: SoftLabelConfig, result: SoftLabelResult) -> Gate:
    """Judges on the rows of all test sets together."""
    return Gate(
        name="gate",
        problem=config.problem,
        metric=config.metrics[0],
        gate=config.gate,
        student_kind=config.student.kind,
        max_length=config.student.max_words,
        resamples=config.resamples,
        seed=config.seed,
        student=result.final_student,
        challenger=result.test_scores,
    )


def report(config: SoftLabelConfig, result: SoftLabelResult) -> ReportSoftLabel:
    return ReportSoftLabel(
        name="report",
        job=config.name,
        problem=config.problem,
        metrics=config.metrics,
        seeds=config.grid.seeds,
        seed=config.seed,
        resamples=config.resamples,
        config=config.as_reported(),
        all=tuple(result.refs()),
        result=result,
    )


def track(
    config: SoftLabelConfig, result: SoftLabelResult, page: ArtifactRef, origin: Mapping[str, str]
) -> TrackSoftLabel:
    tracking = config.tracking
    assert tracking is not None, "only a tracked run is told to MLflow"
    return TrackSoftLabel(
        name="tracking",
        job=config.name,
        uri=tracking.uri,
        experiment=tracking.experiment or config.name,
        config=config.as_reported(),
        student=result.final_student,
        report=page,
        origin=dict(origin),
        verdict=result.verdict,
    )
