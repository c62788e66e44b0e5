"""Holds GPUs for this process, by locks on files that the system releases when the process ends, however it ends.

A file holds the id of the process that locked it last. Prefect is not imported here, because child processes look at
the locks too.
"""

import fcntl
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retort.errors import StageFailed
from retort.models.gpus import identity

FOLDER = Path("/tmp/retort-gpus")
"""For all users and runs of the machine, so not below TMPDIR."""


@dataclass(frozen=True)
class Place:
    """Where a child process runs: on this machine's CPU, or on GPUs."""

    locks: tuple[Path, ...] = ()
    """The lock files of its GPUs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables with which it sees only these GPUs."""
    kept_for: str = ""
    """Key of the step that alone is made there, whose engine was started ahead."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """Entries of CUDA_VISIBLE_DEVICES."""
        return tuple(self.environment["CUDA_VISIBLE_DEVICES"].split(",")) if self.locks else ()

    def each(self) -> "list[Place]":
        """A place on each of the GPUs."""
        pairs = zip(self.locks, self.gpus, strict=True)
        return [Place((lock,), {**self.environment, "CUDA_VISIBLE_DEVICES": gpu}) for lock, gpu in pairs]


@dataclass
class _Hold:
    descriptor: int
    shares: int
    """How many steps of this process may be on the GPU."""
    users: int = 1


_holds: dict[Path, _Hold] = {}


def lock_of(gpu: str) -> Path:
    """The lock file of a GPU, given as a UUID or another name of its own."""
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9.-]', '_', gpu)}.lock"


def own_lock(gpu: str) -> Path:
    """The lock file of a GPU that this process sees, given as an entry of CUDA_VISIBLE_DEVICES."""
    return lock_of(identity(gpu))


def place_on(gpus: Sequence[str]) -> Place:
    """The place on GPUs, given as entries of CUDA_VISIBLE_DEVICES."""
    order = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return Place(tuple(map(own_lock, gpus)), {**order, "CUDA_VISIBLE_DEVICES": ",".join(gpus)})


def take(lock: Path, shares: int) -> bool:
    """Hold a GPU for a step, beside at most `shares` - 1 other steps of this process; whether that was possible.

    Raises StageFailed if there can be no lock file.
    """
    if hold := _holds.get(lock):
        free = hold.users < min(hold.shares, shares)
        hold.users += free
        return free
    descriptor = _opened(lock)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    _holds[lock] = _Hold(descriptor, shares)
    return True


def give_back(lock: Path) -> None:
    hold = _holds[lock]
    hold.users -= 1
    if not hold.users:
        del _holds[lock]
        os.close(hold.descriptor)


def num_users(lock: Path) -> int:
    """Steps of this process on the GPU."""
    hold = _holds.get(lock)
    return hold.users if hold else 0


def holder(lock: Path) -> int | None:
    """Id of the process that holds the GPU; None if it is free. 0 if the process has not yet written its id."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        written = os.pread(descriptor, 20, 0)
        return int(written) if written.isdigit() else 0
    finally:
        os.close(descriptor)


def _opened(lock: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if not FOLDER.is_dir():
            FOLDER.mkdir(exist_ok=True)
            FOLDER.chmod(0o1777)
        try:
            descriptor = os.open(lock, flags)
        except FileNotFoundError:
            descriptor = os.open(lock, flags | os.O_CREAT, 0o666)
            os.fchmod(descriptor, 0o666)  # whatever the umask: for other users too
    except OSError as error:
        raise StageFailed(
            f"{lock}: cannot be opened to hold a GPU ({error.strerror}); {FOLDER} must be writable"
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # somebody else's file is not to be written to
        os.close(descriptor)
        raise StageFailed(f"{lock}: is no lock file; delete it")
    return descriptor
