"""A store's files in an S3-compatible bucket. Imports s3fs, so it is imported for s3:// addresses only."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast
from uuid import uuid4

import aiohttp
import s3fs  # type: ignore[import-untyped]
from botocore import exceptions as boto  # type: ignore[import-untyped]

from retort.errors import StoreUnavailable

BLOCK_BYTES = 8 * 2**20
CONNECT_SECONDS = 4
READ_SECONDS = 20


def filesystem(endpoint_url: str | None) -> s3fs.S3FileSystem:
    """s3fs keeps one for each process and thread, so ask again after a fork instead of keeping it."""
    system = s3fs.S3FileSystem(
        endpoint_url=endpoint_url,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            # Many S3-compatible servers know no checksum trailers; every file here has a sha256 anyway.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    system.retries = 2
    return system


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


def open_remote(system: s3fs.S3FileSystem, path: str) -> BinaryIO:
    """A stream of ranged GETs, at most two blocks in memory."""
    return cast(BinaryIO, BufferedReader(system.open(path, "rb", block_size=BLOCK_BYTES), 2**20))


@contextmanager
def remote_errors(address: str, endpoint_url: str | None) -> Iterator[None]:
    """Everything that a bucket can do to us becomes StoreUnavailable, but for a missing file."""
    try:
        yield
    except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError) as error:
        if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
            raise
        raise StoreUnavailable(_sentence(error, address, endpoint_url)) from error


@contextmanager
def _no_miss(address: str) -> Iterator[None]:
    """A write has nothing to miss: a 404 without S3's own error code comes from something that is no S3 server."""
    try:
        yield
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket":
            raise
        raise StoreUnavailable(
            f"'{address}' cannot be written (404, {error}): is this an S3 server's address?"
        ) from error


def _sentence(error: Exception, address: str, endpoint_url: str | None) -> str:
    bucket = address.removeprefix("s3://").split("/")[0]
    server = re.sub(r"//[^/]*@", "//", endpoint_url) if endpoint_url else "the S3 service"
    if _code(error) == "NoSuchBucket":
        return f"bucket '{bucket}' does not exist at {server}: create it, or correct '{address}'"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return f"no credentials for bucket '{bucket}': set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, PermissionError):
        return (
            f"bucket '{bucket}' at {server} refuses ({_code(error) or error}): "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | aiohttp.ClientConnectionError | TimeoutError):
        return f"{server} cannot be reached for bucket '{bucket}' ({type(error).__name__}): is it running?"
    return f"bucket '{bucket}' at {server} fails: {error}"


def _code(error: BaseException) -> str | None:
    """The S3 error code behind an exception of s3fs."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) and "Error" in response else None
