"""A store's files in an S3-compatible bucket. Imports s3fs, so it is imported for s3:// roots only."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from uuid import uuid4

import s3fs

from retort.buckets import error_code, filesystem, open_remote, remote_errors
from retort.errors import StoreUnavailable


class Bucket:
    """Files below `s3://bucket/prefix`. Credentials come from the environment, as for every AWS tool."""

    def __init__(self, root: str, endpoint_url: str | None) -> None:
        self.root = root
        self._endpoint_url = endpoint_url

    def read(self, path: str) -> bytes:
        """One GET. Raises FileNotFoundError, else StoreUnavailable."""
        with self._errors():
            # With concurrency s3fs asks HEAD, and on a miss lists too, before it GETs.
            return cast(bytes, self._system().cat_file(self._at(path), max_concurrency=1))

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Raises FileNotFoundError, else StoreUnavailable, while reading too."""
        with self._errors(), open_remote(self._system(), self._at(path)) as stream:
            yield stream

    def list(self, path: str) -> list[str]:
        """Names of the files in a folder, sorted; none where there is no such folder."""
        try:
            with self._errors():
                found = self._system().ls(self._at(path), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")

    def write(self, path: str, data: bytes) -> None:
        with self._errors(), _no_miss(self.root):
            self._system().pipe_file(self._at(path), data)

    def upload(self, source: Path, path: str) -> None:
        with self._errors(), _no_miss(self.root):
            self._system().put_file(str(source), self._at(path))

    def download(self, path: str, target: Path) -> None:
        """Raises FileNotFoundError, else StoreUnavailable."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._system().get_file(self._at(path), str(target))

    def remove(self, path: str) -> None:
        """A file, or a folder with all below it; what is not there is no error."""
        try:
            with self._errors():
                self._system().rm(self._at(path), recursive=True)
        except FileNotFoundError:
            pass

    def check_writable(self) -> None:
        """Raises StoreUnavailable with one sentence if nothing can be written here."""
        probe = f".probe-{uuid4().hex}"
        self.write(probe, b"probe")
        with self._errors():
            self._system().rm_file(self._at(probe))

    def _system(self) -> s3fs.S3FileSystem:
        return filesystem(self._endpoint_url)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _errors(self) -> AbstractContextManager[None]:
        return remote_errors(self.root, self._endpoint_url)


@contextmanager
def _no_miss(address: str) -> Iterator[None]:
    """A write has nothing to miss: a 404 without S3's own error code comes from something that is no S3 server."""
    try:
        yield
    except FileNotFoundError as error:
        if error_code(error) == "NoSuchBucket":
            raise
        raise StoreUnavailable(
            f"'{address}' cannot be written (404, {error}): is this an S3 server's address?"
        ) from error
