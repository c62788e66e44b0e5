"""Sizes and sha256 digests of files."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from retort.store.manifest import StoredFile


def stored_files(folder: Path) -> tuple[StoredFile, ...]:
    """All files below a folder, sorted by path."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(_stored_file(folder, path) for path in paths)


def _stored_file(folder: Path, path: str) -> StoredFile:
    with (folder / path).open("rb") as stream:
        num_bytes, sha256 = _measure(stream)
    return StoredFile(path=path, bytes=num_bytes, sha256=sha256)


def _measure(stream: BinaryIO) -> tuple[int, str]:
    """Size in bytes and sha256 in hex, without holding the file in memory."""
    sha256, num_bytes = hashlib.sha256(), 0
    while block := stream.read(2**20):
        sha256.update(block)
        num_bytes += len(block)
    return num_bytes, sha256.hexdigest()


def fault_of(stream: BinaryIO, file: StoredFile) -> str | None:
    """How the stream differs from the stored file, as the predicate of a sentence; None if it does not."""
    num_bytes, sha256 = _measure(stream)
    if num_bytes != file.bytes:
        return f"has {num_bytes} bytes where its manifest says {file.bytes}"
    return None if sha256 == file.sha256 else "has another sha256 than its manifest says"


def is_intact(path: Path, file: StoredFile) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return fault_of(stream, file) is None
    except FileNotFoundError:  # deleted since
        return False
