"""What is written last: it exists, so the artifact is complete."""

from typing import Any

from pydantic import ConfigDict, Field

from retort.records.base import Record


class StoredFile(Record):
    path: str
    """Below the artifact's folder, as the step named it: `rows.parquet`, `model/config.json`."""
    bytes: int
    sha256: str


class StepOutput(Record):
    """What a step reports beside the files that it wrote."""

    rows: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    """`failures`, `changed` ..."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Scalars; those that a flow steers by travel in the ref."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Anything else in JSON that describes how it was made: device, precision, tokens."""


class Manifest(StepOutput):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    kind: str
    key: str
    name: str
    """The step's name in the run that made it."""
    fingerprint: dict[str, Any] = Field(alias="made_of")
    """verb (the step's kind), version, params, the inputs' keys: the key is its digest, lineage is a walk over it."""
    input_kinds: dict[str, str] = Field(default_factory=dict)
    """The kind of each input, by its key; empty in manifests that are older than this field."""
    folder: str
    """Where the files lie, below the artifact's address; one for each writer, so that two do no harm."""
    files: tuple[StoredFile, ...]
    versions: dict[str, str]
    seconds: float
    created_at: str
