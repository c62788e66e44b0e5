"""Reads the model registry: which student a version is, and which version is the champion.

This does not import MLflow, which takes seconds: servers are queried over HTTP, and SQLite files are opened directly.
Only other databases need MLflow's client.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from retort.config import expand
from retort.errors import ConfigError, TrackingUnavailable
from retort.records.base import Record
from retort.tracking.address import database_file, get_json, is_server, read_only
from retort.tracking.mlflow_runs import ARTIFACT_KEY, connected

CHAMPION, CHALLENGER = "champion", "challenger"
ARTIFACT = "retort.artifact"
AT_ONCE = 1000
"""Entries per page: MLflow's maximum for registered models."""
# No quotes, since the name is used in MLflow's filters; no slashes or colons, since MLflow refuses them.
_ADDRESS = re.compile(r"(?:models:/)?(?P<model>[^/:@'\"\s]+)(?:@(?P<alias>[\w-]+)|/0*(?P<version>[0-9]{1,9}))")

Aliases = Mapping[str, Mapping[str, str]]
"""By model: alias -> version."""


class ModelVersion(Record):
    """A registered student."""

    model: str
    version: str
    """An integer."""
    key: str
    """The student artifact's key; empty for a version that Retort did not register."""
    source: str
    """Where MLflow believes the weights to be."""
    run_id: str
    """The tracking run that registered it."""
    artifact: str
    """The student artifact's address in its store."""
    aliases: tuple[str, ...]
    """Sorted."""
    tags: dict[str, str]


def find_version(uri: str, address: str) -> ModelVersion:
    """The version that `models:/NAME@alias` or `models:/NAME/3` refers to. `uri` may contain `${VAR}`.

    Raises ConfigError for an invalid address or a version that does not exist, TrackingUnavailable.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise ConfigError(
            f"'{address}' names no registered student; allowed: models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    model = parts["model"]
    found = _find(expand(uri), model, parts["alias"], parts["version"])
    if found is None:
        raise ConfigError(f"'{address}' names no registered student: {_what_exists(model, _read(expand(uri), model))}")
    return _registered_by_retort(found)


def reigning_version(uri: str, model: str) -> ModelVersion | None:
    """The champion; None if there is none. `uri` may contain `${VAR}`.

    Raises ConfigError if Retort did not register the version with the alias, TrackingUnavailable.
    """
    return aliased_version(uri, model, CHAMPION)


def aliased_version(uri: str, model: str, alias: str) -> ModelVersion | None:
    """Like `reigning_version`, for any alias."""
    found = _find(expand(uri), model, alias, None)
    return None if found is None else _registered_by_retort(found)


def versions(uri: str, model: str | None = None) -> list[ModelVersion]:
    """Every registered student of one model, or of all models by name; newest first. `uri` may contain `${VAR}`.

    Raises TrackingUnavailable.
    """
    return [version for version in _read(expand(uri), model) if version.key]


def _registered_by_retort(version: ModelVersion) -> ModelVersion:
    if not version.key:
        raise ConfigError(
            f"version {version.version} of '{version.model}' was not registered by Retort (it has no tag "
            f"'{ARTIFACT_KEY}'): put its alias on one that was"
        )
    return version


def _what_exists(model: str, known: list[ModelVersion]) -> str:
    if not known:
        return f"there is no version of '{model}'"
    aliases = sorted(alias for version in known for alias in version.aliases)
    numbers = [version.version for version in known]
    shown = ", ".join(numbers[:5]) + (f" ... ({len(numbers)} in all)" if len(numbers) > 5 else "")
    return f"'{model}' has the aliases {', '.join(aliases) or '(none)'} and the versions {shown}"


def _read(uri: str, model: str | None) -> list[ModelVersion]:
    """All versions by model, newest first, including those that Retort did not register. `uri` must be expanded."""
    file = database_file(uri)
    if is_server(uri):
        found = _on_server(uri, model)
    elif file is None:
        found = _with_client(uri, model)
    elif file.is_file():
        try:
            with read_only(file) as database:
                found = _in_database(database, model)
        except sqlite3.Error as error:
            raise TrackingUnavailable(f"tracking.uri = '{uri}' cannot be read: {error}") from error
    else:
        found = []
    return sorted(found, key=lambda version: (version.model, -int(version.version)))


def _find(uri: str, model: str, alias: str | None, number: str | None) -> ModelVersion | None:
    """One version by its alias or number, without listing all versions of a server."""
    if not is_server(uri):
        known = _read(uri, model)
        return next((v for v in known if (alias in v.aliases if alias else v.version == number)), None)
    aliases = _aliases(get_json(uri, "registered-models/get", {"name": model}).get("registered_model"))
    wanted = aliases.get(model, {}).get(alias) if alias else number
    response = get_json(uri, "model-versions/get", {"name": model, "version": wanted}) if wanted else {}
    return _from_server(response["model_version"], aliases) if response else None


def _in_database(database: sqlite3.Connection, model: str | None) -> list[ModelVersion]:
    """Reads the tables of MLflow 3.17. A file without them has not been initialized by MLflow yet."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'model_version_tags'").fetchone():
        return []
    # Deleted versions remain as rows. Only servers have several workspaces.
    of_model, given = "workspace = 'default' AND (? IS NULL OR name = ?)", (model, model)
    aliases: dict[str, dict[str, str]] = {}
    for name, alias, number in database.execute(
        f"SELECT name, alias, version FROM registered_model_aliases WHERE {of_model}", given
    ):
        aliases.setdefault(name, {})[alias] = str(number)
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, number, key, value in database.execute(
        f"SELECT name, version, key, value FROM model_version_tags WHERE {of_model}", given
    ):
        tags.setdefault((name, number), {})[key] = value or ""
    rows = database.execute(
        "SELECT name, version, source, run_id FROM model_versions "
        f"WHERE current_stage != 'Deleted_Internal' AND {of_model}",
        given,
    )
    return [_version(name, at, source, run, tags.get((name, at), {}), aliases) for name, at, source, run in rows]


def _on_server(uri: str, model: str | None) -> list[ModelVersion]:
    if model is None:
        aliases = _aliases(*_pages(uri, "registered-models/search", {}, "registered_models"))
        query = {}
    else:
        aliases = _aliases(get_json(uri, "registered-models/get", {"name": model}).get("registered_model"))
        query = {"filter": f"name = '{model}'"}
    return [_from_server(one, aliases) for one in _pages(uri, "model-versions/search", query, "model_versions")]


def _aliases(*models: dict[str, Any] | None) -> Aliases:
    """Aliases from a server's JSON for models; None stands for a model that it does not have."""
    known = (model for model in models if model is not None)
    return {model["name"]: {a["alias"]: str(a["version"]) for a in model.get("aliases", [])} for model in known}


def _from_server(one: dict[str, Any], aliases: Aliases) -> ModelVersion:
    """A version from a server's JSON. Search results lack the aliases."""
    tags = {tag["key"]: tag.get("value", "") for tag in one.get("tags", [])}
    return _version(one["name"], one["version"], one.get("source"), one.get("run_id"), tags, aliases)


def _pages(uri: str, path: str, query: Mapping[str, str], entries: str) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        page = {**query, "max_results": str(AT_ONCE), **({"page_token": token} if token else {})}
        response = get_json(uri, path, page)
        yield from response.get(entries, [])
        token = response.get("next_page_token", "")
        if not token:
            return


def _with_client(uri: str, model: str | None) -> list[ModelVersion]:
    """Uses MLflow's own client, which takes 6 s to import."""
    with connected(uri) as client:
        query = None if model is None else f"name = '{model}'"
        aliases = {one.name: one.aliases for one in _client_pages(client.search_registered_models, query)}
        return [
            _version(one.name, one.version, one.source, one.run_id, one.tags, aliases)
            for one in _client_pages(client.search_model_versions, query)
        ]


def _client_pages(search: Any, query: str | None) -> Iterator[Any]:
    token = None
    while True:
        page = search(query, max_results=AT_ONCE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _version(
    model: str, number: int | str, source: str | None, run_id: str | None, tags: Mapping[str, str], aliases: Aliases
) -> ModelVersion:
    version = str(number)
    return ModelVersion(
        model=model,
        version=version,
        key=tags.get(ARTIFACT_KEY, ""),
        source=source or "",
        run_id=run_id or "",
        artifact=tags.get(ARTIFACT, ""),
        aliases=tuple(sorted(alias for alias, target in aliases.get(model, {}).items() if str(target) == version)),
        tags=dict(tags),
    )
