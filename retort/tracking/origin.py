"""Reads a tracking run: where a registered student came from. Needs MLflow only for databases other than SQLite."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx

from retort.config import expand
from retort.errors import TrackingUnavailable
from retort.records.base import Record
from retort.tracking.address import database_file, get, is_server, read_only, without_secrets
from retort.tracking.mlflow_runs import connected


class DataInput(Record):
    """A data set that was logged with a run."""

    role: str
    """A field of `data`: labeled, unlabeled, test or dev."""
    key: str
    """The start of its artifact's key."""
    source: str
    """Its address as in the config."""
    rows: int
    gold: int
    """Rows with a gold label."""


class Origin(Record):
    """The contents of a tracking run."""

    run_id: str
    tags: dict[str, str]
    params: dict[str, str]
    """The config by dotted field names; long values are truncated."""
    data: tuple[DataInput, ...]


def find_origin(uri: str, run_id: str) -> Origin | None:
    """The tracking run; None if it does not exist (anymore). `uri` may contain `${VAR}`. Raises TrackingUnavailable."""
    uri = expand(uri)
    file = database_file(uri)
    if is_server(uri):
        return _on_server(uri, run_id)
    if file is None:
        return _with_client(uri, run_id)
    return _in_database(file, uri, run_id) if file.is_file() else None


def _in_database(file: Path, uri: str, run_id: str) -> Origin | None:
    """Reads the tables of MLflow 3.17."""
    try:
        with read_only(file) as database:
            if not database.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone():
                return None
            tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))
            params = dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)))
            sets = database.execute(
                "SELECT name, digest, dataset_source, dataset_profile FROM datasets JOIN inputs "
                "ON source_type = 'DATASET' AND source_id = dataset_uuid "
                "WHERE destination_type = 'RUN' AND destination_id = ?",
                (run_id,),
            )
            return Origin(run_id=run_id, tags=tags, params=params, data=_data(sets))
    except sqlite3.Error as error:
        raise TrackingUnavailable(f"tracking.uri = '{uri}' cannot be read: {error}") from error


def _on_server(uri: str, run_id: str) -> Origin | None:
    place = f"tracking.uri = '{without_secrets(uri)}'"
    try:
        response = get(uri, "runs/get", {"run_id": run_id})
        body = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise TrackingUnavailable(f"{place} cannot be asked for run {run_id} ({type(error).__name__})") from error
    if response.status_code == 404 or body.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return None
    if response.status_code != 200:
        raise TrackingUnavailable(f"{place} refuses to show run {run_id}: {response.status_code}")
    data = body["run"]["data"]
    sets = [one["dataset"] for one in body["run"].get("inputs", {}).get("dataset_inputs", [])]
    return Origin(
        run_id=run_id,
        tags=_pairs(data.get("tags", [])),
        params=_pairs(data.get("params", [])),
        data=_data((one["name"], one["digest"], one["source"], one.get("profile")) for one in sets),
    )


def _pairs(entries: list[Mapping[str, str]]) -> dict[str, str]:
    return {entry["key"]: entry.get("value", "") for entry in entries}


def _with_client(uri: str, run_id: str) -> Origin | None:
    """Uses MLflow's own client, which takes 6 s to import."""
    with connected(uri) as client:
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        sets = [one.dataset for one in run.inputs.dataset_inputs] if run.inputs else []
        return Origin(
            run_id=run_id,
            tags=run.data.tags,
            params=run.data.params,
            data=_data((one.name, one.digest, one.source, one.profile) for one in sets),
        )


def _data(sets: Iterable[tuple[str, str, str, str | None]]) -> tuple[DataInput, ...]:
    """Data sets sorted by role."""
    return tuple(sorted((_data_input(*one) for one in sets), key=lambda data: data.role))


def _data_input(role: str, key: str, source: str, profile: str | None) -> DataInput:
    """Parse a data set in the form that `mlflow_runs.log_inputs` writes."""
    address, counts = json.loads(source), json.loads(profile or "{}")
    place = str(address.get("uri", source))
    return DataInput(role=role, key=key, source=place, rows=counts.get("num_rows", 0), gold=counts.get("num_gold", 0))
