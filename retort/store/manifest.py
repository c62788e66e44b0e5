"""The manifest, which is written last: if it exists, the artifact is complete."""

from typing import Any

from pydantic import ConfigDict, Field

from retort.records.base import Record


class StoredFile(Record):
    path: str
    """Path below the artifact's folder, as the step named it: `rows.parquet`, `model/config.json`."""
    bytes: int
    sha256: str


class StepOutput(Record):
    """What a step reports in addition to its files."""

    rows: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    """`failures`, `changed` ..."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Scalars. They are also in the ref, since some decide how a run continues."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Other JSON values that describe how the artifact was made: device, precision, tokens."""


class Manifest(StepOutput):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    kind: str
    key: str
    name: str
    """The step's name in the run that made it."""
    fingerprint: dict[str, Any] = Field(alias="made_of")
    """verb (the step's kind), version, params, and the inputs' keys. Its digest is the key, and the lineage follows its
    inputs."""
    input_kinds: dict[str, str] = Field(default_factory=dict)
    """The kind of each input by its key; empty in manifests older than this field."""
    folder: str
    """The folder with the files, below the artifact's address. It is derived from their content, so two concurrent
    writers do not overwrite each other's files; where something lay there already, it is random."""
    files: tuple[StoredFile, ...]
    versions: dict[str, str]
    seconds: float
    created_at: str
