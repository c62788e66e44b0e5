"""Registers a final student as a version of the model, with the gate's verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retort.artifacts.reports import Tracked
from retort.artifacts.verdicts import Verdict
from retort.report.base import Summary
from retort.tracking import mlflow_runs as runs
from retort.tracking.address import is_server, without_secrets
from retort.tracking.registry import CHALLENGER

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERDICT, OUTCOME = "gate.verdict", "gate.outcome"
COMPARED = ("gain", "low", "high", "win_share", "p_value")
"""The fields of a comparison with the champion that MLflow shows."""


def register_student(
    client: "MlflowClient", summary: Summary, columns: Sequence[str], run_id: str, uri: str, tags: Mapping[str, str]
) -> str:
    """Register the final student, once per artifact, and give it the alias `challenger`. Returns its version.

    `columns` are those that the student reads.
    """
    version = runs.find_version(client, summary.name, summary.model_key)
    if version is None:
        artifact = summary.model_uri if "://" in summary.model_uri else str(Path(summary.model_uri).absolute())
        source = runs.log_model(client, run_id, artifact, columns, uri)
        known = {**tags, "retort.artifact": artifact, "retort.reason": summary.conclusion}
        version = runs.register(client, summary.name, summary.model_key, source, run_id, known, summary.conclusion)
    if str(client.get_registered_model(summary.name).aliases.get(CHALLENGER)) != version:
        runs.set_alias(client, summary.name, CHALLENGER, version)
    return version


def tag_verdict(client: "MlflowClient", summary: Summary, verdict: Verdict, key: str, version: str) -> None:
    """Set the tags of the latest verdict, even if the version was registered in an earlier run. Figures that only an
    earlier verdict had are removed."""
    contest = verdict.contest
    compared = {name: f"{getattr(contest, name):.6f}" if contest else None for name in COMPARED}
    tags: dict[str, str | None] = {
        VERDICT: key,
        "gate.accepted": str(verdict.accepted).lower(),
        "gate.champion": summary.champion,
        "gate.reasons": "\n".join(verdict.reasons),
        **{f"gate.{name}": text for name, text in compared.items()},
    }
    # The outcome is removed first and set last, so that it never appears next to another verdict's champion, even if
    # the run is killed here.
    for part in ({OUTCOME: None}, tags, {OUTCOME: verdict.outcome}):
        runs.tag_version(client, summary.name, version, part)


def tracked(uri: str, experiment_id: str, run_id: str, model: str, version: str, verdict: str = "") -> Tracked:
    """Where to see the run: a page on the server, or a command."""
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
