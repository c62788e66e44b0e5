"""Finds the student that a MODEL argument names: a version in a registry, or the address of an artifact.

Imports neither torch nor MLflow. As for every AWS tool, AWS_ENDPOINT_URL selects an S3 server other than AWS.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retort.errors import ConfigError
from retort.records.base import Record
from retort.store import Manifest, Store
from retort.store.opening import refusals

if TYPE_CHECKING:
    from retort.tracking.registry import ModelVersion

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_REGISTERED = re.compile(r"models:/.+|[^/]+@[^/]+")
_ARTIFACT = re.compile(r"(.+)/students/([0-9a-f]{2})/(\2[0-9a-f]{62})/*")


class ModelName(Record):
    """A student's name in responses: the registered model's name and version, if it was found in a registry."""

    name: str | None = None
    version: str | None = None
    key: str
    """The key of the student's artifact."""

    def __str__(self) -> str:
        name = " ".join(part for part in (self.name, self.version) if part)
        return f"{name} ({self.key[:12]})" if name else self.key[:12]


@dataclass(frozen=True, slots=True)
class FoundStudent:
    """A student's artifact that exists but is not loaded yet."""

    store: Store
    manifest: Manifest
    name: ModelName


def find_student(model: str, tracking: str | None = None) -> FoundStudent:
    """Find the student that `model` names.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or ROOT/students/XX/KEY in a folder or a bucket.
        tracking: The registry's address; by default, MLFLOW_TRACKING_URI from the environment.

    Raises ConfigError if there is no such student, StoreUnavailable or TrackingUnavailable if a server cannot be
    reached.
    """
    with refusals():
        if _REGISTERED.fullmatch(model):
            return found_version(model, named_version(model, tracking))
        found = _at(model, ModelName(key=""))
    if found is None:
        raise ConfigError(
            f"MODEL '{model}': there is no student's artifact; allowed: models:/NAME@ALIAS, models:/NAME/VERSION, or "
            "an artifact's address, STORE/students/XX/KEY, in a folder or an s3:// bucket"
        )
    return found


def is_alias(model: str) -> bool:
    """Whether `model` names what may be another version tomorrow: `models:/NAME@ALIAS`."""
    return _REGISTERED.fullmatch(model) is not None and "@" in model


def named_version(model: str, tracking: str | None = None) -> "ModelVersion":
    """The version that a name in the registry stands for now. Raises ConfigError, TrackingUnavailable."""
    from retort.tracking.registry import find_version

    address = tracking or os.environ.get(TRACKING_VARIABLE)
    if not address:
        raise ConfigError(
            f"MODEL '{model}' is in a model registry: give its address by --tracking or {TRACKING_VARIABLE}"
        )
    return find_version(address, model)


def found_version(model: str, version: "ModelVersion") -> FoundStudent:
    """The student of a version that `model` stands for. Raises ConfigError, StoreUnavailable."""
    name = ModelName(name=version.model, version=version.version, key=version.key)
    with refusals():
        for place in _places(version):
            if (found := _at(place, name)) is not None:
                return found
    raise ConfigError(f"MODEL '{model}' is version {version.version}, whose artifact '{version.artifact}' is not there")


def _places(version: "ModelVersion") -> list[str]:
    """Where the artifact may be. Versions of before 2026-12 have a relative address, and the absolute one as source."""
    return [place for place in (version.artifact, version.source) if place]


def _at(address: str, name: ModelName) -> FoundStudent | None:
    """The artifact at the address, or None if the address has another form or nothing is there."""
    match = _ARTIFACT.fullmatch(address if "://" in address else str(Path(address).absolute()))
    if match is None:
        return None
    root, _, key = match.groups()
    store = Store(root)
    manifest = store.find("students", key)
    if manifest is None:
        return None
    return FoundStudent(store, manifest, name.model_copy(update={"key": key}))
