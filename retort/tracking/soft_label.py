"""A run of the soft-label recipe in MLflow: one run with scores, report and model version."""

import json
import re
from collections.abc import Iterator

from retort.artifacts.reports import Report, Tracked
from retort.artifacts.students import TrainedStudent
from retort.config import expand
from retort.records.base import ArtifactRef
from retort.report.soft_label.summary import SoftLabelSummary
from retort.steps.base import Runtime
from retort.steps.context import StepContext
from retort.tracking import mlflow_runs as runs
from retort.tracking.logging import (
    flattened,
    gate_points,
    log_report,
    milliseconds,
    open_run,
    run_tags,
    set_aside_points,
)
from retort.tracking.mlflow_runs import Input, Point
from retort.tracking.step import Track
from retort.tracking.student_versions import register_student, tag_verdict, tracked


class TrackSoftLabel(Track):
    kind = "track-scores"
    version = 1

    student: ArtifactRef
    """The exported student."""
    verdict: Runtime[ArtifactRef | None] = None
    """The gate's verdict. Not in the key, since the report, which is an input, contains it."""

    def project(self, context: StepContext) -> Tracked:
        store, uri = context.store, expand(self.uri)
        report = Report.open(store, self.report)
        summary = report.summary(SoftLabelSummary)
        with runs.connected(uri) as client:
            experiment_id = runs.open_experiment(client, self.experiment, uri)
            run_id = open_run(client, self, summary, experiment_id, run_tags(summary, self.origin))
            student = {f"student.{name}": value for name, value in flattened(summary.student).items()}
            runs.log_params(client, run_id, {**flattened(summary.config), **student})
            runs.log_points(client, run_id, list(_points(summary)), milliseconds(summary.made_at))
            runs.log_inputs(client, run_id, list(_inputs(summary)))
            log_report(client, run_id, report)
            version = register_student(
                client, summary, lambda: TrainedStudent.open(store, self.student).folder, run_id, uri, {}
            )
            if summary.gate is not None and self.verdict is not None:
                tag_verdict(client, summary, summary.gate, self.verdict.key, version)
            runs.finish(client, run_id, runs.now_ms())
        verdict = self.verdict.key if self.verdict else ""
        return tracked(uri, experiment_id, run_id, summary.name, version, verdict)


def _points(summary: SoftLabelSummary) -> Iterator[Point]:
    """Each seed's values at step = the seed's index; means and intervals at step 0."""
    for arm, by_rows in summary.scores.items():
        for rows, scores in by_rows.items():
            for metric, score in scores.metrics.items():
                name = re.sub(r"[^\w./ -]", "_", f"{arm}/{rows}/{metric}")
                yield Point(name, score.mean, 0)
                if len(score.values) > 1:
                    yield Point(f"{name}_low", score.low, 0)
                    yield Point(f"{name}_high", score.high, 0)
                    yield from (Point(f"{name}_by_seed", value, step) for step, value in enumerate(score.values))
    for gain in summary.gains:
        yield Point(f"{gain.arm}_against_{gain.against}/{gain.rows}/{gain.metric}", gain.difference.mean, 0)
    for scorer, times in summary.costs.scorers.items():
        yield Point(f"{scorer}/latency_ms", times.latency_ms, 0)
        yield Point(f"{scorer}/rows_per_second", times.rows_per_second, 0)
        yield Point(f"{scorer}/parameters", times.parameters, 0)
    if summary.gate is not None:
        yield from gate_points(summary.gate)
    yield from set_aside_points(summary)
    yield Point("compute_seconds", summary.compute_seconds, 0)


def _inputs(summary: SoftLabelSummary) -> Iterator[Input]:
    for role, key in summary.data_keys.items():
        profile = json.dumps({"num_rows": summary.rows[role]})
        yield Input(role, json.dumps({"key": key}), key, profile)
