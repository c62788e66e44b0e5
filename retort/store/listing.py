"""A file of a store, as a listing tells it."""

from typing import NamedTuple


class FoundFile(NamedTuple):
    path: str
    """Below the store's root."""
    bytes: int
    modified: float
    """Unix seconds, by the storage's clock."""
