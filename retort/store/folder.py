"""A store's files in a folder on disk."""

import builtins
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from retort.errors import ConfigError, StoreUnavailable
from retort.store.listing import FoundFile, Upload

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}|\.probe-[0-9a-f]{32}")
_TRIES = 9
T = TypeVar("T")


class Folder:
    """Files below `root`. Writes are atomic: a file has either its complete content or does not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError or StoreUnavailable."""
        with _local_errors(self.root / path):
            return (self.root / path).read_bytes()

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Raises FileNotFoundError or StoreUnavailable, also while reading."""
        with _local_errors(self.root / path), (self.root / path).open("rb") as stream:
            yield stream

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; empty if it does not exist."""
        try:
            with _local_errors(self.root / path):
                return sorted(entry.name for entry in os.scandir(self.root / path) if entry.is_dir())
        except FileNotFoundError:
            return []

    def list(self, path: str) -> list[str]:
        """Names of the files in a folder except drafts, sorted; empty if it does not exist."""
        try:
            with _local_errors(self.root / path):
                return sorted(e.name for e in os.scandir(self.root / path) if e.is_file() and e.name[0] != ".")
        except FileNotFoundError:
            return []

    def walk(self, path: str) -> Iterator[FoundFile]:
        """Every file below a folder, including drafts. Skips files that are deleted in the meantime."""
        for folder, _, names in os.walk(self.root / path):
            for name in names:
                file = Path(folder) / name
                with suppress(FileNotFoundError), _local_errors(file):
                    status = file.stat()
                    yield FoundFile(file.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)

    def drafts(self) -> Iterator[FoundFile]:
        """Files that were being written: in use, or left behind by writers that died."""
        return (file for file in self.walk("") if _DRAFT.fullmatch(file.path.rpartition("/")[2]))

    def uploads(self) -> builtins.list[Upload]:
        """None: only buckets take files in parts."""
        return []

    def bytes_up(self, upload: Upload) -> int:
        return 0

    def abort(self, upload: Upload) -> None:
        raise FileNotFoundError(upload.path)

    def download(self, path: str, target: Path) -> None:
        """Raises FileNotFoundError or StoreUnavailable."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with _local_errors(self.root / path):
            shutil.copyfile(self.root / path, target)

    def write(self, path: str, data: bytes) -> None:
        self._replace(path, io.BytesIO(data))

    def upload(self, source: Path, path: str) -> None:
        with source.open("rb") as stream:
            self._replace(path, stream)

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with everything below it, if it exists."""
        target = self.root / path
        try:
            with _local_errors(target):
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink()
        except FileNotFoundError:
            pass

    def remove_files(self, folder: str, paths: Iterable[str]) -> None:
        """Delete exactly these files if they exist, then the empty folders in `folder`."""
        for path in paths:
            with suppress(FileNotFoundError), _local_errors(self.root / path):
                (self.root / path).unlink()
        for emptied, _, _ in os.walk(self.root / folder, topdown=False):
            with suppress(OSError):  # not empty: somebody is writing there
                os.rmdir(emptied)

    def touch(self, path: str) -> None:
        """Create the file if necessary and set its modification time to now."""
        try:
            _in_folder(self.root / path, Path.touch)
        except OSError as error:
            raise StoreUnavailable(f"cannot write {self.root / path}: {error.strerror or error}") from error

    def check_writable(self) -> None:
        """Raises ConfigError with a one-sentence message if nothing can be written."""
        probe = self.root / f".probe-{uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"store.root '{self.root}' is not a folder: {error.filename} is a file") from error
        except OSError as error:
            raise ConfigError(f"store.root '{self.root}' is not writable: {error.strerror}") from error

    def _replace(self, path: str, stream: BinaryIO) -> None:
        target = self.root / path
        draft = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            with _in_folder(draft, lambda file: file.open("xb")) as file:
                shutil.copyfileobj(stream, file, 2**20)
                file.flush()
                os.fsync(file.fileno())  # so that after a power failure no manifest exists without its data
            draft.replace(target)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise StoreUnavailable(f"cannot write {target}: {error.strerror or error}") from error
        _keep_names(target.parent)


def _in_folder(file: Path, create: Callable[[Path], T]) -> T:
    """Create a file and the folders that it lacks: again if a sweep has removed one of them, empty as it still was."""
    for _ in range(_TRIES - 1):
        with suppress(FileNotFoundError, FileExistsError):
            file.parent.mkdir(parents=True, exist_ok=True)
            return create(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return create(file)


def _keep_names(folder: Path) -> None:
    """Have the names of a folder's files survive a power failure, as their contents do."""
    with suppress(OSError):  # some file systems cannot; or a sweep has removed file and folder since
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreUnavailable(f"cannot use {path}: {error.strerror or error}") from error
