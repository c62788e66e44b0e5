"""The artifact store, in a folder or a bucket. An artifact is found by its key and complete once it has a manifest."""

from retort.store.manifest import Manifest, StepOutput, StoredFile
from retort.store.store import Store

__all__ = ["Manifest", "StepOutput", "Store", "StoredFile"]
