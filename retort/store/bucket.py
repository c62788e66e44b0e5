"""A store's files in an S3-compatible bucket. Only imported for s3:// roots, since it imports s3fs."""

import builtins
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import s3fs
from fsspec.asyn import sync

from retort.errors import StoreUnavailable
from retort.io.batched import batched
from retort.io.s3 import error_code, filesystem, open_remote, remote_errors
from retort.store.listing import FoundFile, Upload

KEYS_AT_ONCE = 1000
"""The most keys that S3 deletes per request."""
_PROBE = re.compile(r"\.probe-[0-9a-f]{32}")
_NOT_LISTED = ("NotImplemented", "MethodNotAllowed", "AccessDenied", "InvalidArgument", "501", "405", "403")
"""Codes of servers that do not list uploads in parts, or not to us."""


class Bucket:
    """Files below `s3://bucket/prefix`. Credentials come from the environment, as for every AWS tool."""

    def __init__(self, root: str, endpoint_url: str | None) -> None:
        self.root = root
        self._endpoint_url = endpoint_url

    def read(self, path: str) -> bytes:
        """Read a file with a single GET. Raises FileNotFoundError or StoreUnavailable."""
        with self._errors():
            # With concurrency, s3fs sends a HEAD before the GET, and on a miss lists the folder.
            return cast(bytes, self._system().cat_file(self._at(path), max_concurrency=1))

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Raises FileNotFoundError or StoreUnavailable, also while reading."""
        with self._errors(), open_remote(self._system(), self._at(path)) as stream:
            yield stream

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; empty if it does not exist."""
        try:
            with self._errors():
                found = self._system().ls(self._at(path).rstrip("/"), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "directory")

    def list(self, path: str) -> list[str]:
        """Names of the files in a folder, sorted; empty if it does not exist."""
        try:
            with self._errors():
                found = self._system().ls(self._at(path), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")

    def walk(self, path: str) -> Iterator[FoundFile]:
        """Every file below a folder. Lists its prefix, with a thousand files per request."""
        with self._errors():
            # With a prefix, s3fs omits the HEAD and the second listing that it sends if nothing is found.
            found = self._system().find(self.root, prefix=f"{path}/", detail=True)
        start = len(self.root) - len("s3://") + 1
        for name, entry in found.items():
            if entry["type"] == "file":
                yield FoundFile(name[start:], int(entry["size"]), entry["LastModified"].timestamp())

    def drafts(self) -> Iterator[FoundFile]:
        """Probes of writers that died. Other files appear only when they are complete."""
        try:
            with self._errors():
                found = self._system().ls(self.root, detail=True, refresh=True)
        except FileNotFoundError:
            return
        for entry in found:
            name = entry["name"].rpartition("/")[2]
            if entry["type"] == "file" and _PROBE.fullmatch(name):
                yield FoundFile(name, int(entry["size"]), entry["LastModified"].timestamp())

    def uploads(self) -> builtins.list[Upload]:
        """Files that were going up in parts: under way, or left behind by writers that died, and billed although no
        listing shows them. Empty if the server or its policy does not let us see them."""
        bucket, prefix = self._bucket_and_prefix()
        marks: dict[str, str] = {}
        found: list[Upload] = []
        while True:
            try:
                page = self._call("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marks)
            except FileNotFoundError:  # what rclone says
                return []
            except StoreUnavailable as error:
                if error_code(error.__cause__ or error) in _NOT_LISTED:
                    return []
                raise
            for one in page.get("Uploads", []):
                found.append(Upload(one["Key"][len(prefix) :], one["UploadId"], one["Initiated"].timestamp()))
            if not page.get("IsTruncated"):
                return found
            marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def bytes_up(self, upload: Upload) -> int:
        """Bytes of the first thousand parts of an upload; 0 if it was completed or aborted meanwhile."""
        with suppress(FileNotFoundError):
            parts = self._call("list_parts", **self._named(upload)).get("Parts", [])
            return sum(int(part["Size"]) for part in parts)
        return 0

    def abort(self, upload: Upload) -> None:
        """Delete the parts of an upload that nobody continues."""
        with suppress(FileNotFoundError):
            self._call("abort_multipart_upload", **self._named(upload))

    def _named(self, upload: Upload) -> dict[str, str]:
        bucket, prefix = self._bucket_and_prefix()
        return {"Bucket": bucket, "Key": prefix + upload.path, "UploadId": upload.upload_id}

    def write(self, path: str, data: bytes) -> None:
        with self._errors(), _no_miss(self.root):
            self._system().pipe_file(self._at(path), data)

    def upload(self, source: Path, path: str) -> None:
        with self._errors(), _no_miss(self.root):
            self._system().put_file(str(source), self._at(path))

    def download(self, path: str, target: Path) -> None:
        """Raises FileNotFoundError or StoreUnavailable."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._system().get_file(self._at(path), str(target))

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with everything below it, if it exists."""
        try:
            with self._errors():
                self._system().rm(self._at(path), recursive=True)
        except FileNotFoundError:
            pass

    def _bucket_and_prefix(self) -> tuple[str, str]:
        """The prefix ends in a slash, unless it is empty."""
        bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/" if prefix else ""

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One request that s3fs has no method for."""
        with self._errors():
            system = self._system()
            return cast(dict[str, Any], sync(system.loop, system._call_s3, method, **arguments))

    def remove_files(self, folder: str, paths: Iterable[str]) -> None:
        """Delete exactly these files if they exist, a thousand per request. `folder` is unused: buckets have no
        folders."""
        bucket, prefix = self._bucket_and_prefix()
        for some in batched([{"Key": prefix + path} for path in paths], KEYS_AT_ONCE):
            # s3fs's own bulk deletion ignores files that the server refuses to delete.
            answer = self._call("delete_objects", Bucket=bucket, Delete={"Objects": some, "Quiet": True})
            for refusal in answer.get("Errors", []):
                raise StoreUnavailable(f"'{self.root}': {refusal['Key']} cannot be deleted ({refusal.get('Code')})")

    def touch(self, path: str) -> None:
        """Write an empty file, so that its modification time is now."""
        self.write(path, b"")

    def check_writable(self) -> None:
        """Raises StoreUnavailable with a one-sentence message if nothing can be written."""
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
    """Handle a 404 on a write: without S3's own error code, it comes from something that is not an S3 server."""
    try:
        yield
    except FileNotFoundError as error:
        if error_code(error) == "NoSuchBucket":
            raise
        raise StoreUnavailable(
            f"'{address}' cannot be written (404, {error}): is this an S3 server's address?"
        ) from error
