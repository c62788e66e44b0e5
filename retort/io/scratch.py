"""Temporary folders that are known to be ours, so that what a killed process left can be told from what is in use.

A process holds a lock on each of its folders, which the system releases when the process ends, however it ends. That
also holds where several containers share a folder and process ids mean nothing.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "retort-scratch-"
_OURS = re.compile(rf"{_PREFIX}[a-z]+-[a-z0-9_]{{8}}")
_NEW_SECONDS = 60.0
"""A folder that is younger may belong to a process that has not locked it yet."""


@contextmanager
def scratch(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder in `parent` (default: the machine's temporary folder), which is deleted afterwards.

    `purpose`, a word of a to z, is part of its name.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, whose folders are then never swept
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path | None = None) -> int:
    """Delete the scratch folders in `parent` of this user's processes that no longer live; returns how many."""
    swept = 0
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(parent or tempfile.gettempdir())):
            swept += bool(_OURS.fullmatch(entry.name)) and _sweep_one(Path(entry.path))
    return swept


def _sweep_one(folder: Path) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, or not a folder
        return False
    try:
        status = os.fstat(lock)
        if status.st_uid != os.getuid() or time.time() - status.st_ctime < _NEW_SECONDS:
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    except OSError:  # its process lives, or the file system has no locks
        return False
    finally:
        os.close(lock)
