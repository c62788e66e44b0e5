"""Artifacts: content-addressed, complete once their manifest is there, in a folder or a bucket."""

from retort.store.manifest import Manifest, Product, StoredFile
from retort.store.store import Store

__all__ = ["Manifest", "Product", "Store", "StoredFile"]
