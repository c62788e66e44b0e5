"""Artifacts: content-addressed, complete once their manifest is there, in a folder or a bucket."""

from retort.store.manifest import Manifest, StepOutput, StoredFile
from retort.store.store import Store

__all__ = ["Manifest", "StepOutput", "Store", "StoredFile"]
