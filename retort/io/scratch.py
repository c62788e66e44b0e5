"""Temporary folders that are known to be ours, so that what a killed process left can be told from what is in use.

A process holds a lock on each of its folders, which the system releases when the process ends, however it ends. That
also holds where several containers share a folder and process ids mean nothing. Machines may share a folder too, and
some network file systems tell no machine of another's locks, so a folder's name says whose it is. Each machine deletes
its own, and those of others, which may never come back, once nothing in them has changed for a day.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "retort-scratch-"
_OURS = re.compile(rf"{_PREFIX}[a-z]+-(?:([0-9a-f]{{8}})-([0-9a-f]{{8}})-)?[a-z0-9_]{{8}}")
"""Purpose, the two of `_MACHINE` (not in names of older versions), what makes the name unique."""
_NEW_SECONDS = 60.0
"""A folder that is younger may belong to a process that has not locked it yet."""
_STILL_SECONDS = 86400.0
"""Another machine's folder in which anything has changed since may be in use."""


def _machine() -> tuple[str, str]:
    """Digests of the host's name, which stays when the machine starts anew, and of its boot, which is the same in all
    containers of a machine, whatever their names."""
    host = os.uname().nodename
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # no Linux
        boot = host
    return _digest(host), _digest(boot)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_MACHINE = _machine()


@contextmanager
def scratch(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder in `parent` (default: the machine's temporary folder), which is deleted afterwards.

    `purpose`, a word of a to z, is part of its name.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-{'-'.join(_MACHINE)}-", dir=parent))
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
            if match := _OURS.fullmatch(entry.name):
                is_here = match[1] in (None, _MACHINE[0]) or match[2] == _MACHINE[1]
                swept += _sweep_one(Path(entry.path), is_here)
    return swept


def _sweep_one(folder: Path, is_here: bool) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, or not a folder
        return False
    try:
        status = os.fstat(lock)
        if status.st_uid != os.getuid() or time.time() - status.st_ctime < _NEW_SECONDS:
            return False
        if not is_here and time.time() - _last_change(folder) < _STILL_SECONDS:
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    except OSError:  # its process lives, or the file system has no locks
        return False
    finally:
        os.close(lock)


def _last_change(folder: Path) -> float:
    """Unix seconds. While a large file is written, only its own time changes."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
