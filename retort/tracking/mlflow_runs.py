"""Idempotent writes to MLflow: each run and version has an identity, so writing it again changes nothing.

MLflow takes seconds to import, so functions import it only when called.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from retort.errors import TrackingUnavailable, first_line
from retort.tracking.address import check_reachable, database_file, is_server, without_secrets
from retort.tracking.mlflow_model import write_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY, ARTIFACT_KEY = "retort.run_key", "retort.key"
PARAM_CHARACTERS = 500
TAG_CHARACTERS = 5000
DIGEST_CHARACTERS = 36
MODEL_DESCRIPTION = "Students distilled by Retort: `champion` is the one in use, `challenger` the one made last."
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000


class Point(NamedTuple):
    """One value of a metric."""

    metric: str
    value: float
    step: int


class Input(NamedTuple):
    """A data set that a run used."""

    name: str
    source: str
    key: str
    profile: str
    """As JSON."""


@contextmanager
def connected(uri: str) -> Iterator["MlflowClient"]:
    """Connect to an expanded address. Raises TrackingUnavailable if it cannot be reached, at first or in the block."""
    check_reachable(uri)
    file = database_file(uri)
    if file is not None:
        _make_folder(file.parent, uri)
    client, failures = _client(uri)
    try:
        yield client
    except failures as error:
        sentence = without_secrets(" ".join(str(error).split()))[:300]
        raise TrackingUnavailable(f"tracking.uri = '{without_secrets(uri)}' refuses: {sentence}") from error


def open_experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """Return the experiment's id. The experiment is created or restored if necessary."""
    found = client.get_experiment_by_name(name)
    if found is None:
        file = database_file(uri)
        # MLflow's default is ./mlruns in the process's current directory.
        place = (file.parent / "mlartifacts").as_uri() if file else None
        return client.create_experiment(name, artifact_location=place)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def open_run(
    client: "MlflowClient", experiment_id: str, key: str, name: str, started_ms: int, tags: Mapping[str, str]
) -> str:
    """Return the id of the run with this identity, which is created if there is none. Its tags are updated."""
    from mlflow.entities import RunTag

    runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
    every = {RUN_KEY: key, **{tag: value[:TAG_CHARACTERS] for tag, value in tags.items()}}
    if not runs:
        return str(client.create_run(experiment_id, started_ms, tags=every, run_name=name).info.run_id)
    run_id = str(runs[0].info.run_id)
    for part in _in_parts([RunTag(tag, value) for tag, value in every.items()], PARAMS_AT_ONCE):
        client.log_batch(run_id, tags=part)
    return run_id


def finish(client: "MlflowClient", run_id: str, ended_ms: int) -> None:
    """Mark the run as finished. If it already is, it keeps its end time."""
    if client.get_run(run_id).info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED", ended_ms)


def log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entities = [Param(name, value[:PARAM_CHARACTERS]) for name, value in params.items()]
    for part in _in_parts(entities, PARAMS_AT_ONCE):
        client.log_batch(run_id, params=part)


def log_points(client: "MlflowClient", run_id: str, points: Sequence[Point], time_ms: int) -> None:
    """Log metrics. Repeated calls must use the same `time_ms`: MLflow stores each (metric, step, value, time) once."""
    from mlflow.entities import Metric

    entities = [Metric(point.metric, point.value, time_ms, point.step) for point in points]
    for part in _in_parts(entities, METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=part)


def log_inputs(client: "MlflowClient", run_id: str, inputs: Sequence[Input]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        run_id,
        [
            DatasetInput(
                Dataset(
                    name=item.name,
                    digest=item.key[:DIGEST_CHARACTERS],
                    source_type="retort",
                    source=item.source,
                    profile=item.profile,
                ),
                [InputTag("mlflow.data.context", item.name)],
            )
            for item in inputs
        ],
    )


def find_version(client: "MlflowClient", model: str, key: str) -> str | None:
    """The registered version of the artifact with this key."""
    versions = client.search_model_versions(f"name = '{model}' and tags.`{ARTIFACT_KEY}` = '{key}'")
    return str(versions[0].version) if versions else None


def log_model(client: "MlflowClient", run_id: str, artifact: str, columns: Sequence[str], uri: str) -> str:
    """Log what MLflow needs to load the student whose artifact is at this address; returns the source of a version."""
    with TemporaryDirectory() as folder:
        write_model(Path(folder), artifact, columns, copy="://" not in artifact and is_server(uri))
        client.log_artifacts(run_id, folder, "model")
    return f"{client.get_run(run_id).info.artifact_uri}/model"


def register(
    client: "MlflowClient", model: str, key: str, source: str, run_id: str, tags: Mapping[str, str], said: str = ""
) -> str:
    """Register a new version of the model, which is created if necessary. `said` is the version's description."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, description=MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    every = {ARTIFACT_KEY: key, **tags}
    made = client.create_model_version(model, source, run_id=run_id, tags=every, description=said)
    return str(made.version)


def set_alias(client: "MlflowClient", model: str, alias: str, version: str) -> None:
    """Set or move an alias; in MLflow, an alias belongs to one version at a time."""
    _insert(client.set_registered_model_alias, model, alias, version)


def tag_version(client: "MlflowClient", model: str, version: str, tags: Mapping[str, str | None]) -> None:
    """Set a version's tags. The value None removes a tag, if it exists."""
    for tag, value in tags.items():
        if value is None:
            client.delete_model_version_tag(model, version, tag)
        else:
            _insert(client.set_model_version_tag, model, version, tag, value[:TAG_CHARACTERS])


def _insert(write: Callable[..., None], *arguments: str) -> None:
    """Call `write`, with one retry: if two processes insert the same row at once, MLflow fails one of them."""
    from mlflow.exceptions import MlflowException

    try:
        write(*arguments)
    except MlflowException:
        write(*arguments)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _client(uri: str) -> tuple["MlflowClient", tuple[type[Exception], ...]]:
    """Return (client, the exceptions that it raises if its server or database fails)."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Standard output is reserved for `--json`.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import requests
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    failures = (MlflowException, SQLAlchemyError, requests.RequestException)
    try:
        return MlflowClient(uri, registry_uri=uri), failures
    except (*failures, ImportError) as error:  # ImportError: a database's driver that is not installed
        sentence = without_secrets(first_line(error))
        raise TrackingUnavailable(f"tracking.uri = '{without_secrets(uri)}' cannot be opened: {sentence}") from error


def _make_folder(folder: Path, uri: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrackingUnavailable(f"tracking.uri = '{uri}': its folder cannot be made ({reason})") from error


def _in_parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Split into batches, since MLflow limits how many items a request may have."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))
