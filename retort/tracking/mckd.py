"""What a run is in MLflow: one parent run, a child for each student, data sets, the report, a model version."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retort.config import expand
from retort.records.base import ArtifactRef, MckdResult, Record, Score, digest
from retort.report.mckd.artifacts import manifest_of, student_behind
from retort.report.mckd.summary import Scores, Summary, Verdict, read_summary
from retort.steps.context import StepContext
from retort.steps.cross_label import INVALID_SHARE
from retort.steps.evaluate import read_scores
from retort.steps.train_student import HISTORY, MODEL
from retort.store import Manifest
from retort.tracking import mlflow_runs as runs
from retort.tracking.address import is_current, is_server, without_secrets
from retort.tracking.mlflow_runs import Input, Point
from retort.tracking.registry import CHALLENGER, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERDICT, OUTCOME = "gate.verdict", "gate.outcome"
_COMPARED = ("gain", "low", "high", "win_share", "p_value")


class Tracked(Record):
    """Where a run is found in MLflow."""

    experiment_id: str
    run_id: str
    url: str
    """Of the parent run's page; empty for a database without a server."""
    open_with: str
    """The command that shows it; empty for a server."""
    model: str
    version: str
    verdict: str = ""
    """Key of the gate's verdict, which is on the version; empty without one."""


class Student(NamedTuple):
    """A student with the name that it has in this run, whichever run made it."""

    name: str
    stage: int
    manifest: Manifest
    scores: dict[str, ArtifactRef]
    """By the rows that it was scored on: `test`, `judge`."""


def is_projected(uri: str, tracking_json: Path) -> bool:
    """Whether MLflow still shows what a `tracking.json` tells: the run, and on the version this very verdict. Another
    night's may have been written over it since. `uri` may hold `${VAR}`. Raises TrackingUnavailable, as a rule not: a
    server that cannot be reached counts as no."""
    if not is_current(uri, tracking_json):
        return False
    told = Tracked.model_validate_json(tracking_json.read_text(encoding="utf-8"))
    return not told.verdict or any(
        version.version == told.version and version.tags.get(VERDICT) == told.verdict and CHALLENGER in version.aliases
        for version in versions(uri, told.model)
    )


def project(work: StepContext) -> Tracked:
    """Bring MLflow to where it shows the run. Raises TrackingUnavailable."""
    params = work.stage.params
    uri = expand(params["uri"])
    summary = read_summary(work.fetch("report"))
    distilled = MckdResult.model_validate(work.stage.knobs["distilled"])
    students = list(_students(work, distilled))
    verdict = distilled.verdict.key if distilled.verdict else ""
    with runs.connected(uri) as client:
        experiment_id = runs.open_experiment(client, params["experiment"], uri)
        run_id = _parent(client, work, summary, experiment_id)
        for done, student in enumerate(students, start=1):
            _child(client, work, student, experiment_id, run_id)
            work.progress(done, len(students), student.name)
        version = _version(client, work, summary, run_id, uri)
        if summary.gate is not None:
            _tag_verdict(client, summary, summary.gate, verdict, version)
        runs.finish(client, run_id, runs.now_ms())
    return tracked(uri, experiment_id, run_id, summary.name, version, verdict)


def tracked(uri: str, experiment_id: str, run_id: str, model: str, version: str, verdict: str = "") -> Tracked:
    """Where to look at it: on the server's page, or with a command."""
    page = f"{without_secrets(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    return Tracked(
        experiment_id=experiment_id,
        run_id=run_id,
        url=page if is_server(uri) else "",
        open_with="" if is_server(uri) else f"mlflow ui --backend-store-uri {without_secrets(uri)}",
        model=model,
        version=version,
        verdict=verdict,
    )


def _parent(client: "MlflowClient", work: StepContext, summary: Summary, experiment_id: str) -> str:
    origin: dict[str, str] = work.stage.knobs["origin"]
    started = milliseconds(origin["started_at"]) if origin.get("started_at") else runs.now_ms()
    run_id = runs.open_run(client, experiment_id, work.stage.key, summary.name, started, _tags(summary, origin))
    runs.log_params(client, run_id, flattened(summary.config))
    runs.log_points(client, run_id, list(_points(summary)), milliseconds(summary.made_at))
    runs.log_inputs(client, run_id, list(_inputs(summary)))
    folder = work.fetch("report")
    for file in sorted(folder.iterdir()):
        client.log_artifact(run_id, str(file), "report")
    return run_id


def _child(client: "MlflowClient", work: StepContext, student: Student, experiment_id: str, parent_id: str) -> None:
    manifest = student.manifest
    ended, key = milliseconds(manifest.created_at), digest([work.stage.key, student.name])
    tags = {
        "mlflow.parentRunId": parent_id,
        runs.ARTIFACT_KEY: manifest.key,
        "retort.artifact": work.store.ref(manifest).uri,
        "retort.made_as": manifest.name,
        **{f"retort.{name}": str(value) for name, value in manifest.details.items()},
    }
    started = ended - round(1000 * manifest.seconds)
    run_id = runs.open_run(client, experiment_id, key, student.name, started, tags)
    made_of = {name: value for name, value in manifest.made_of["params"].items() if name != "problem"}
    runs.log_params(client, run_id, {**flattened(made_of), "rows": str(manifest.rows)})
    runs.log_points(client, run_id, list(_curve(work, student)), ended)
    runs.log_points(client, run_id, list(_results(work, student)), ended)
    runs.finish(client, run_id, ended)


def _version(client: "MlflowClient", work: StepContext, summary: Summary, run_id: str, uri: str) -> str:
    """The final student's, registered once for each artifact."""
    version = runs.find_version(client, summary.name, summary.model_key)
    if version is None:
        scores = {name: f"{score.value:.6f}" for name, score in summary.final.scores.items()}
        tags = {**scores, "retort.artifact": summary.model_uri, "retort.reason": summary.reason}
        student = MckdResult.model_validate(work.stage.knobs["distilled"]).final_student
        source = runs.model_source(client, summary.model_uri, lambda: work.fetch_ref(student) / MODEL, run_id, uri)
        version = runs.register(client, summary.name, summary.model_key, source, run_id, tags)
    if str(client.get_registered_model(summary.name).aliases.get(CHALLENGER)) != version:
        runs.set_alias(client, summary.name, CHALLENGER, version)
    return version


def _tag_verdict(client: "MlflowClient", summary: Summary, verdict: Verdict, key: str, version: str) -> None:
    """The latest night's, whichever night the version was registered in; what was compared then and not now goes."""
    contest = verdict.contest
    compared = {name: f"{getattr(contest, name):.6f}" if contest else None for name in _COMPARED}
    tags: dict[str, str | None] = {
        VERDICT: key,
        "gate.accepted": str(verdict.accepted).lower(),
        "gate.champion": summary.champion,
        "gate.reasons": "\n".join(verdict.reasons),
        **{f"gate.{name}": text for name, text in compared.items()},
    }
    # The outcome goes first and comes last, so that nobody finds it beside another night's champion, not even after
    # a run that was killed here.
    for part in ({OUTCOME: None}, tags, {OUTCOME: verdict.outcome}):
        runs.tag_version(client, summary.name, version, part)


def _students(work: StepContext, distilled: MckdResult) -> Iterator[Student]:
    """In the order of the work."""
    if distilled.teacher_scores is not None:
        yield from _behind(work, "teacher/student", 0, distilled.teacher_scores)
    for done in distilled.rounds:
        for index, ref in enumerate(done.students):
            scores = {"test": done.test_scores[index], "judge": done.judge_scores[index]}
            yield Student(f"stage{done.stage}/student-{index}", done.stage, manifest_of(work, ref), scores)
    final = manifest_of(work, distilled.final_student)
    yield Student("final/student", distilled.kept_stage, final, {"test": distilled.final_scores})
    for name, ref in distilled.baselines.items():
        yield from _behind(work, f"{name}/student", 0, ref)


def _behind(work: StepContext, name: str, stage: int, scores: ArtifactRef) -> Iterator[Student]:
    manifest = student_behind(work, scores)
    if manifest is not None:
        yield Student(name, stage, manifest, {"test": scores})


def _tags(summary: Summary, origin: Mapping[str, str]) -> dict[str, str]:
    tags = {
        "mlflow.note.content": summary.reason,
        "mlflow.source.name": "retort",
        "retort.config_hash": digest(summary.config),
        "retort.data_digest": digest([[data.role, data.key] for data in summary.data]),
        "retort.kept_stage": str(summary.kept_stage),
        "retort.reason": summary.reason,
        runs.ARTIFACT_KEY: summary.model_key,
        **{f"retort.{name}": value for name, value in origin.items()},
    }
    if commit := origin.get("git.commit"):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _points(summary: Summary) -> Iterator[Point]:
    """Of the parent: a stage's at step = stage, all others at the kept stage or 0."""
    for row in summary.systems:
        name = re.sub(r"\W", "_", row.name)
        match row.role:
            case "stage":
                stage = row.stage or 0
                yield from _scored("test", row.scores, stage)
                yield from _scored("judge", row.judge_scores, stage)
                yield Point("stage_seconds", row.seconds, stage)
            case "final":
                yield from _scored("final", row.scores, summary.kept_stage)
            case _ if row.measured_on == "test":
                yield from _scored(name, row.scores, 0)
    for labels in summary.labels:
        yield from _scored("label", labels.quality, labels.stage)
        if labels.change is not None:
            yield Point("changed_share", labels.changed_share, labels.stage)
    for teacher in summary.teachers:
        for name, value in teacher.metrics.items():
            yield Point(f"{teacher.name}_{name}", value, 0)
    if summary.gate is not None:
        yield from _gate_points(summary.gate)
    yield Point("kept_stage", summary.kept_stage, 0)
    yield Point("compute_seconds", summary.compute_seconds, 0)
    yield Point("label_failures", sum(summary.failures.reasons.values()), 0)


def _gate_points(verdict: Verdict) -> Iterator[Point]:
    yield Point("gate_accepted", float(verdict.accepted), 0)
    for name in _COMPARED if verdict.contest else ():
        yield Point(f"gate_{name}", getattr(verdict.contest, name), 0)
    for part in verdict.slices:
        if part.score is not None:
            yield from _with_interval(f"gate_slice_{re.sub(r'[^A-Za-z0-9_]', '_', part.name)}", part.score, 0)
    yield Point("gate_latency_ms", verdict.cost.latency_ms, 0)
    yield Point("gate_megabytes", verdict.cost.megabytes, 0)


def _curve(work: StepContext, student: Student) -> Iterator[Point]:
    history = json.loads((work.fetch_ref(work.store.ref(student.manifest)) / HISTORY).read_text(encoding="utf-8"))
    for step, loss, rate in zip(history["steps"], history["losses"], history["learning_rates"], strict=True):
        yield Point("loss", loss, step)
        yield Point("learning_rate", rate, step)
    for step, loss in zip(history.get("held_out_steps", ()), history.get("held_out_losses", ()), strict=True):
        yield Point("held_out_loss", loss, step)


def _results(work: StepContext, student: Student) -> Iterator[Point]:
    for rows, ref in student.scores.items():
        yield from _scored(rows, {score.metric: score for score in read_scores(work, ref)}, student.stage)
        if (manifest := work.store.find(ref.kind, ref.key)) and INVALID_SHARE in manifest.metrics:
            yield Point(f"{rows}_{INVALID_SHARE}", manifest.metrics[INVALID_SHARE], student.stage)
    speed = student.manifest.metrics.get("examples_per_second")
    if speed is not None:
        yield Point("examples_per_second", speed, student.stage)
    yield Point("seconds", student.manifest.seconds, student.stage)


def _scored(prefix: str, scores: Scores, step: int) -> Iterator[Point]:
    for metric, score in scores.items():
        yield from _with_interval(f"{prefix}_{metric}", score, step)


def _with_interval(name: str, score: Score, step: int) -> Iterator[Point]:
    yield Point(name, score.value, step)
    yield Point(f"{name}_low", score.low, step)
    yield Point(f"{name}_high", score.high, step)


def _inputs(summary: Summary) -> Iterator[Input]:
    for data in summary.data:
        profile = json.dumps({"num_rows": data.rows, "num_gold": data.gold})
        yield Input(data.role, json.dumps({"uri": data.source}), data.key, profile)


def flattened(value: Any, name: str = "") -> dict[str, str]:
    """`{"method": {"stages": 3}}` -> `{"method.stages": "3"}`. Lists are one value; names are made legal."""
    if isinstance(value, dict):
        parts = (flattened(inner, f"{name}.{key}".lstrip(".")) for key, inner in value.items())
        return {key: text for part in parts for key, text in part.items()}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {re.sub(r"[^\w.\- ]", "_", name)[:250]: text}


def milliseconds(moment: str) -> int:
    """Of an ISO 8601 time, since the epoch."""
    return round(1000 * datetime.fromisoformat(moment).timestamp())
