"""An entry of a listing of a store's files."""

from typing import NamedTuple


class FoundFile(NamedTuple):
    path: str
    """Path below the store's root."""
    bytes: int
    modified: float
    """Unix seconds, by the storage's clock."""


class Upload(NamedTuple):
    """A file that goes to a bucket in parts, or would have, had its writer not died."""

    path: str
    """Path below the store's root."""
    upload_id: str
    started: float
    """Unix seconds, by the storage's clock."""
