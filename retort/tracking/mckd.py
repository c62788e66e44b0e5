"""A run of the MCKD recipe in MLflow: a parent run with one child per student, data sets, report and model version."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from retort.artifacts.reports import Report, Tracked
from retort.artifacts.scores import INVALID_SHARE, Scores
from retort.artifacts.students import TrainedStudent
from retort.config import expand
from retort.records.base import ArtifactRef, digest
from retort.records.mckd import MckdResult
from retort.report.mckd.artifacts import student_behind
from retort.report.mckd.summary import MckdSummary, ScoresByMetric
from retort.steps.base import Runtime
from retort.steps.context import StepContext
from retort.store import Manifest, Store
from retort.tracking import mlflow_runs as runs
from retort.tracking.logging import (
    flattened,
    gate_points,
    log_report,
    milliseconds,
    open_run,
    run_tags,
    set_aside_points,
    with_interval,
)
from retort.tracking.mlflow_runs import Input, Point
from retort.tracking.step import Track
from retort.tracking.student_versions import register_student, tag_verdict, tracked

if TYPE_CHECKING:
    from mlflow import MlflowClient


class LoggedStudent(NamedTuple):
    """A student under its name in this run, even if another run made it."""

    name: str
    stage: int
    manifest: Manifest
    scores: dict[str, ArtifactRef]
    """Scores by the rows that they are on: `test`, `judge`."""


class TrackMckd(Track):
    kind = "track"
    version = 2

    all: tuple[ArtifactRef, ...]
    """Everything that the run made."""
    result: Runtime[MckdResult]

    def project(self, context: StepContext) -> Tracked:
        store, result, uri = context.store, self.result, expand(self.uri)
        report = Report.open(store, self.report)
        summary = report.summary(MckdSummary)
        students = list(_students(store, result))
        with runs.connected(uri) as client:
            experiment_id = runs.open_experiment(client, self.experiment, uri)
            run_id = self._parent(client, report, summary, experiment_id)
            for done, student in enumerate(students, start=1):
                self._child(client, store, student, experiment_id, run_id)
                context.progress(done, len(students), student.name)
            scores = {name: f"{score.value:.6f}" for name, score in summary.final.scores.items()}
            version = register_student(
                client, summary, lambda: TrainedStudent.open(store, result.final_student).model, run_id, uri, scores
            )
            if summary.gate is not None and result.verdict is not None:
                tag_verdict(client, summary, summary.gate, result.verdict.key, version)
            runs.finish(client, run_id, runs.now_ms())
        verdict = result.verdict.key if result.verdict else ""
        return tracked(uri, experiment_id, run_id, summary.name, version, verdict)

    def _parent(self, client: "MlflowClient", report: Report, summary: MckdSummary, experiment_id: str) -> str:
        tags = {**run_tags(summary, self.origin), "retort.kept_stage": str(summary.kept_stage)}
        run_id = open_run(client, self, summary, experiment_id, tags)
        runs.log_params(client, run_id, flattened(summary.config))
        runs.log_points(client, run_id, list(_points(summary)), milliseconds(summary.made_at))
        runs.log_inputs(client, run_id, list(_inputs(summary)))
        log_report(client, run_id, report)
        return run_id

    def _child(
        self, client: "MlflowClient", store: Store, student: LoggedStudent, experiment_id: str, parent_id: str
    ) -> None:
        manifest = student.manifest
        ended, key = milliseconds(manifest.created_at), digest([self.key, student.name])
        tags = {
            "mlflow.parentRunId": parent_id,
            runs.ARTIFACT_KEY: manifest.key,
            "retort.artifact": store.ref(manifest).uri,
            "retort.made_as": manifest.name,
            **{f"retort.{name}": str(value) for name, value in manifest.details.items()},
        }
        started = ended - round(1000 * manifest.seconds)
        run_id = runs.open_run(client, experiment_id, key, student.name, started, tags)
        params = {name: value for name, value in manifest.fingerprint["params"].items() if name != "problem"}
        runs.log_params(client, run_id, {**flattened(params), "rows": str(manifest.rows)})
        runs.log_points(client, run_id, list(_curve(store, student)), ended)
        runs.log_points(client, run_id, list(_results(store, student)), ended)
        runs.finish(client, run_id, ended)


def _students(store: Store, result: MckdResult) -> Iterator[LoggedStudent]:
    """The run's students, in the order of execution."""
    if result.teacher_scores is not None:
        yield from _behind(store, "teacher/student", 0, result.teacher_scores)
    for done in result.rounds:
        for index, ref in enumerate(done.students):
            scores = {"test": done.test_scores[index], "judge": done.judge_scores[index]}
            yield LoggedStudent(f"stage{done.stage}/student-{index}", done.stage, store.manifest_of(ref), scores)
    if tuning := result.fine_tuning:
        for index, (ref, scored) in enumerate(zip(tuning.students, tuning.test_scores, strict=True)):
            yield LoggedStudent(
                f"fine-tuning/student-{index}", result.kept_stage, store.manifest_of(ref), {"test": scored}
            )
    final = store.manifest_of(result.final_student)
    yield LoggedStudent("final/student", result.kept_stage, final, {"test": result.final_scores})
    for name, ref in result.baselines.items():
        yield from _behind(store, f"{name}/student", 0, ref)


def _behind(store: Store, name: str, stage: int, scores: ArtifactRef) -> Iterator[LoggedStudent]:
    manifest = student_behind(store, scores)
    if manifest is not None:
        yield LoggedStudent(name, stage, manifest, {"test": scores})


def _points(summary: MckdSummary) -> Iterator[Point]:
    """The parent run's metrics: a stage's at step = stage, all others at step = kept stage or 0."""
    for row in summary.systems:
        name = re.sub(r"\W", "_", row.name)
        match row.role:
            case "stage" if row.stage is not None:
                stage = row.stage
                yield from _score_points("test", row.scores, stage)
                yield from _score_points("judge", row.judge_scores, stage)
                yield Point("stage_seconds", row.seconds, stage)
            case "final":
                yield from _score_points("final", row.scores, summary.kept_stage)
            case _ if row.measured_on == "test":
                yield from _score_points(name, row.scores, 0)
    for labels in summary.labels:
        prefix = "fine_tuned_" if labels.fine_tuned else ""
        yield from _score_points(f"{prefix}label", labels.quality, labels.stage)
        if labels.change is not None:
            yield Point(f"{prefix}changed_share", labels.changed_share, labels.stage)
    for teacher in summary.teachers:
        for name, value in teacher.metrics.items():
            yield Point(f"{teacher.name}_{name}", value, 0)
    if summary.gate is not None:
        yield from gate_points(summary.gate)
    yield from set_aside_points(summary)
    yield Point("kept_stage", summary.kept_stage, 0)
    yield Point("compute_seconds", summary.compute_seconds, 0)
    yield Point("label_failures", sum(summary.failures.reasons.values()), 0)


def _curve(store: Store, student: LoggedStudent) -> Iterator[Point]:
    history = TrainedStudent.open(store, store.ref(student.manifest)).history()
    for step, loss, rate in zip(history["steps"], history["losses"], history["learning_rates"], strict=True):
        yield Point("loss", loss, step)
        yield Point("learning_rate", rate, step)
    for step, loss in zip(history.get("held_out_steps", ()), history.get("held_out_losses", ()), strict=True):
        yield Point("held_out_loss", loss, step)


def _results(store: Store, student: LoggedStudent) -> Iterator[Point]:
    for rows, ref in student.scores.items():
        yield from _score_points(rows, Scores.open(store, ref).scores(), student.stage)
        metrics = store.manifest_of(ref).metrics
        if INVALID_SHARE in metrics:
            yield Point(f"{rows}_{INVALID_SHARE}", metrics[INVALID_SHARE], student.stage)
    speed = student.manifest.metrics.get("examples_per_second")
    if speed is not None:
        yield Point("examples_per_second", speed, student.stage)
    yield Point("seconds", student.manifest.seconds, student.stage)


def _score_points(prefix: str, scores: ScoresByMetric, step: int) -> Iterator[Point]:
    for metric, score in scores.items():
        yield from with_interval(f"{prefix}_{metric}", score, step)


def _inputs(summary: MckdSummary) -> Iterator[Input]:
    for data in summary.data:
        profile = json.dumps({"num_rows": data.rows, "num_gold": data.gold})
        yield Input(data.role, json.dumps({"uri": data.source}), data.key, profile)
