"""An entry of a listing of a store's files."""

from typing import NamedTuple


class FoundFile(NamedTuple):
    path: str
    """Path below the store's root."""
    bytes: int
    modified: float
    """Unix seconds, by the storage's clock."""
