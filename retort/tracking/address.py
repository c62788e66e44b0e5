"""The tracking address and plain requests to it. Does not import MLflow, which takes seconds."""

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from retort.config import TrackingConfig, expand
from retort.errors import ConfigError, TrackingUnavailable
from retort.io import http

ANSWER_SECONDS = 5.0
PAGE_SECONDS = 30.0
"""Timeout for one page of an answer, which may take long on a busy server."""
_SQLITE = "sqlite:///"


def database_file(uri: str) -> Path | None:
    """The file of an expanded `sqlite:///` address; None for other addresses."""
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


_USER = re.compile(r"(?<=://)(?:[^/\s'\"]*|[^/\s:@'\"]*:(?!\d+/)[^\s'\"]*)@")
"""User and password in front of a host; a password may hold slashes, which should have been escaped."""


def without_secrets(text: str) -> str:
    """An address, or an error's message with addresses, without users and passwords: for records and messages."""
    return _USER.sub("", text)


def check_reachable(uri: str) -> None:
    """Make one short request, since MLflow's own retries take minutes. Raises TrackingUnavailable, or ConfigError if
    the server does not let this user in."""
    if not is_server(uri):
        return
    try:
        response = http.get(uri, timeout=ANSWER_SECONDS, **_credentials())
    except httpx.HTTPError as error:
        raise TrackingUnavailable(
            f"tracking.uri = '{without_secrets(uri)}' cannot be reached ({type(error).__name__}); start the MLflow "
            "server, or correct the address"
        ) from error
    if response.status_code in (401, 403):
        raise ConfigError(
            f"tracking.uri = '{without_secrets(uri)}' refuses its login (HTTP status {response.status_code}): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )


def get(uri: str, path: str, query: Mapping[str, str], seconds: float = ANSWER_SECONDS) -> httpx.Response:
    """GET a path of MLflow's REST API, such as `runs/get`. `uri` must be expanded. Raises httpx.HTTPError."""
    timeout = httpx.Timeout(seconds, connect=ANSWER_SECONDS)
    return http.get(f"{uri.rstrip('/')}/api/2.0/mlflow/{path}", params=query, timeout=timeout, **_credentials())


def get_json(uri: str, path: str, query: Mapping[str, str]) -> dict[str, Any]:
    """As `get`: the server's JSON; empty if it does not have what was requested. Raises TrackingUnavailable."""
    place = f"tracking.uri = '{without_secrets(uri)}'"
    try:
        response = get(uri, path, query, PAGE_SECONDS)
        body: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TrackingUnavailable(f"{place} cannot be reached ({type(error).__name__})") from error
    except ValueError as error:
        raise TrackingUnavailable(f"{place} answers {path} with {response.status_code} and no JSON") from error
    if response.status_code == 200:
        return body
    if body.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return {}
    raise TrackingUnavailable(f"{place} refuses {path}: {response.status_code} {str(body.get('message', ''))[:300]}")


_ADDRESS = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://.+|databricks(-uc)?(://.*)?|file:.+|[^:]+")


def tracking_uri(tracking: TrackingConfig) -> str:
    """The expanded address. Raises ConfigError for addresses that MLflow would reject only after all the training."""
    uri = expand(tracking.uri)
    if not _ADDRESS.fullmatch(uri):
        raise ConfigError(
            f"tracking.uri = '{tracking.uri}': no address of a tracking server; allowed: http://host:port, "
            "https://..., sqlite:///file, postgresql://..., mysql://..., mssql://..."
        )
    if uri.startswith(f"{_SQLITE}~"):
        raise ConfigError(
            f"tracking.uri = '{tracking.uri}': ~ is not expanded in an address; write sqlite:///${{HOME}}/..."
        )
    return uri


@contextmanager
def read_only(file: Path) -> Iterator[sqlite3.Connection]:
    """Open MLflow's SQLite database, which must exist. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


def is_current(uri: str, run_id: str) -> bool:
    """Whether the tracking run still exists, so that nothing needs to be logged again.

    `uri` may contain `${VAR}`. Always True for databases other than SQLite. Raises TrackingUnavailable if the server or
    the database does not say.
    """
    uri = expand(uri)
    if is_server(uri):
        return _on_server(uri, run_id)
    file = database_file(uri)
    return file is None or _in_database(file, run_id)


def _in_database(file: Path, run_id: str) -> bool:
    if not file.is_file():
        return False
    query = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    try:
        with read_only(file) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
                return False  # not initialized by MLflow yet
            return database.execute(query, (run_id,)).fetchone() is not None
    except sqlite3.Error as error:
        raise TrackingUnavailable(f"tracking.uri = '{_SQLITE}{file}' cannot be read: {error}") from error


def _on_server(uri: str, run_id: str) -> bool:
    run = get_json(uri, "runs/get", {"run_id": run_id}).get("run")
    return run is not None and run["info"].get("lifecycle_stage", "active") == "active"


def _credentials() -> dict[str, Any]:
    """Credentials from the same environment variables as MLflow's own client."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"headers": {"Authorization": f"Bearer {token}"}}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {}
