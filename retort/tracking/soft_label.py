"""What a run of the score flow is in MLflow: one run with its scores, the report, and a model version."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from retort.config import expand
from retort.records.base import digest
from retort.report.soft_label.summary import ScoreSummary, read_score_summary
from retort.steps.context import StepContext
from retort.tracking import mlflow_runs as runs
from retort.tracking.mckd import Tracked, flattened, milliseconds, tracked
from retort.tracking.mlflow_runs import Input, Point
from retort.tracking.registry import CHALLENGER

if TYPE_CHECKING:
    from mlflow import MlflowClient


def project_scores(work: StepContext) -> Tracked:
    """Bring MLflow to where it shows the run. Raises TrackingUnavailable."""
    params, folder = work.stage.params, work.fetch("report")
    uri = expand(params["uri"])
    summary = read_score_summary(folder)
    with runs.connected(uri) as client:
        experiment_id = runs.open_experiment(client, params["experiment"], uri)
        run_id = _run(client, work, summary, experiment_id)
        version = _version(client, work, summary, run_id, uri)
        runs.finish(client, run_id, runs.now_ms())
    return tracked(uri, experiment_id, run_id, summary.name, version)


def _run(client: "MlflowClient", work: StepContext, summary: ScoreSummary, experiment_id: str) -> str:
    origin: dict[str, str] = work.stage.knobs["origin"]
    tags = {
        "mlflow.note.content": summary.reason,
        "mlflow.source.name": "retort",
        "retort.config_hash": digest(summary.config),
        "retort.data_digest": digest(summary.data_keys),
        runs.ARTIFACT_KEY: summary.model_key,
        **{f"retort.{name}": value for name, value in origin.items()},
    }
    run_id = runs.open_run(client, experiment_id, work.stage.key, summary.name, runs.now_ms(), tags)
    student = {f"student.{name}": value for name, value in flattened(summary.student).items()}
    runs.log_params(client, run_id, {**flattened(summary.config), **student})
    runs.log_points(client, run_id, list(_points(summary)), milliseconds(summary.made_at))
    runs.log_inputs(client, run_id, list(_inputs(summary)))
    for file in sorted(work.fetch("report").iterdir()):
        client.log_artifact(run_id, str(file), "report")
    return run_id


def _version(client: "MlflowClient", work: StepContext, summary: ScoreSummary, run_id: str, uri: str) -> str:
    """The exported student's, registered once for each artifact; alias `challenger`."""
    version = runs.find_version(client, summary.name, summary.model_key)
    if version is None:
        tags = {"retort.artifact": summary.model_uri, "retort.reason": summary.reason[:4000]}
        version = runs.register(
            client,
            summary.name,
            summary.model_key,
            runs.model_source(client, summary.model_uri, lambda: work.fetch("student"), run_id, uri),
            run_id,
            tags,
        )
    if str(client.get_registered_model(summary.name).aliases.get(CHALLENGER)) != version:
        runs.set_alias(client, summary.name, CHALLENGER, version)
    return version


def _points(summary: ScoreSummary) -> Iterator[Point]:
    """A seed's values at step = its place among the seeds; means and intervals at step 0."""
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
    yield Point("compute_seconds", summary.compute_seconds, 0)


def _inputs(summary: ScoreSummary) -> Iterator[Input]:
    for role, key in summary.data_keys.items():
        profile = json.dumps({"num_rows": summary.rows[role]})
        yield Input(role, json.dumps({"key": key}), key, profile)
