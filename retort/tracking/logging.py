"""What runs of every recipe log to MLflow: tags, the report, the gate's numbers."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from retort.artifacts.reports import Report
from retort.artifacts.verdicts import Verdict
from retort.records.base import Score, digest
from retort.report.base import Summary
from retort.tracking import mlflow_runs as runs
from retort.tracking.mlflow_runs import Point
from retort.tracking.student_versions import COMPARED

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from retort.tracking.step import Track


def open_run(
    client: "MlflowClient", step: "Track", summary: Summary, experiment_id: str, tags: Mapping[str, str]
) -> str:
    """Return the id of the run's tracking run, which is created if there is none."""
    started_at = step.origin.get("started_at")
    started = milliseconds(started_at) if started_at else runs.now_ms()
    return runs.open_run(client, experiment_id, step.key, summary.name, started, tags)


def run_tags(summary: Summary, origin: Mapping[str, str]) -> dict[str, str]:
    tags = {
        "mlflow.note.content": summary.conclusion,
        "mlflow.source.name": "retort",
        "retort.config_hash": digest(summary.config),
        "retort.data_digest": summary.data_digest,
        "retort.reason": summary.conclusion,
        runs.ARTIFACT_KEY: summary.model_key,
        **{f"retort.{name}": value for name, value in origin.items()},
    }
    if commit := origin.get("git.commit"):
        tags["mlflow.source.git.commit"] = commit
    return tags


def log_report(client: "MlflowClient", run_id: str, report: Report) -> None:
    """Pages, facts and pictures."""
    client.log_artifacts(run_id, str(report.folder), "report")


def gate_points(verdict: Verdict) -> Iterator[Point]:
    yield Point("gate_accepted", float(verdict.accepted), 0)
    for name in COMPARED if verdict.contest else ():
        yield Point(f"gate_{name}", getattr(verdict.contest, name), 0)
    for part in verdict.slices:
        if part.score is not None:
            yield from with_interval(f"gate_slice_{re.sub(r'[^A-Za-z0-9_]', '_', part.name)}", part.score, 0)
    yield Point("gate_latency_ms", verdict.cost.latency_ms, 0)
    yield Point("gate_megabytes", verdict.cost.megabytes, 0)


def set_aside_points(summary: Summary) -> Iterator[Point]:
    """Rows of the pool that cannot be used, all and by reason; nothing if there are none."""
    if summary.set_aside is None:
        return
    yield Point("rows_set_aside", summary.set_aside.rows, 0)
    for reason, count in summary.set_aside.reasons.items():
        yield Point(f"rows_set_aside_{re.sub(r'[^A-Za-z0-9_]', '_', reason)}", count, 0)


def with_interval(name: str, score: Score, step: int) -> Iterator[Point]:
    yield Point(name, score.value, step)
    yield Point(f"{name}_low", score.low, step)
    yield Point(f"{name}_high", score.high, step)


def flattened(value: Any, name: str = "") -> dict[str, str]:
    """`{"method": {"stages": 3}}` -> `{"method.stages": "3"}`. A list is one value; names are made legal."""
    if isinstance(value, dict):
        parts = (flattened(inner, f"{name}.{key}".lstrip(".")) for key, inner in value.items())
        return {key: text for part in parts for key, text in part.items()}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {re.sub(r"[^\w.\- ]", "_", name)[:250]: text}


def milliseconds(moment: str) -> int:
    """Milliseconds since the epoch, from an ISO 8601 time."""
    return round(1000 * datetime.fromisoformat(moment).timestamp())
