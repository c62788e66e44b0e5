"""What is written last: it exists, so the artifact is complete."""

from typing import Any

from pydantic import Field

from retort.records.base import Record


class StoredFile(Record):
    path: str
    """Below the artifact's folder, as the maker named it: `rows.parquet`, `model/config.json`."""
    bytes: int
    sha256: str


class StepOutput(Record):
    """What a stage's maker reports beside the files that it wrote."""

    rows: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    """`failures`, `changed` ..."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Scalars; those that a flow steers by travel in the ref."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Anything else in JSON that describes how it was made: device, precision, tokens."""


class Manifest(StepOutput):
    kind: str
    key: str
    name: str
    """The stage's name in the run that made it."""
    made_of: dict[str, Any]
    """verb, version, params and the inputs' keys: the key is its digest, lineage is a walk over it."""
    input_kinds: dict[str, str] = Field(default_factory=dict)
    """The kind of each input, by its key; empty in manifests that are older than this field."""
    folder: str
    """Where the files lie, below the artifact's address; one for each writer, so that two do no harm."""
    files: tuple[StoredFile, ...]
    versions: dict[str, str]
    seconds: float
    created_at: str
