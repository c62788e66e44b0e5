"""An artifact's files on local disk, with its manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from retort.records.base import ArtifactRef
from retort.store import Manifest, Store

NOT_STORED = Manifest(
    kind="", key="", name="", fingerprint={}, folder="", files=(), versions={}, seconds=0.0, created_at=""
)
"""The manifest of files that are not in a store."""


@dataclass(frozen=True)
class Artifact:
    """Base class. Each subclass is a kind of artifact and knows the names of its files. Do not write into `folder`."""

    kind: ClassVar[str]
    """Name of the kind's folder in the store."""
    manifest: Manifest
    folder: Path

    @classmethod
    def open(cls, store: Store, ref: ArtifactRef) -> Self:
        """Fetch and verify the artifact. Raises DamagedArtifact, StoreUnavailable."""
        return cls(*store.open(ref))
