"""An artifact's files on local disk, with its manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from retort.records.base import ArtifactRef
from retort.store import Manifest, Store

NOT_STORED = Manifest(
    kind="", key="", name="", fingerprint={}, folder="", files=(), versions={}, seconds=0.0, created_at=""
)
"""Of files that are in no store."""


@dataclass(frozen=True)
class Artifact:
    """A subclass is a kind of artifact and knows its files' names. Do not write into `folder`."""

    kind: ClassVar[str]
    """The folder in the store."""
    manifest: Manifest
    folder: Path

    @classmethod
    def open(cls, store: Store, ref: ArtifactRef) -> Self:
        """Fetched and verified. Raises DamagedArtifact, StoreUnavailable."""
        return cls(*store.open(ref))
