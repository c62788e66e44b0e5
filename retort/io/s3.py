"""Connections to S3-compatible buckets, with their failures as Retort's errors.

Imports s3fs, which is slow, so import this module only for s3:// addresses.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from typing import Any, BinaryIO, cast

import aiohttp
import s3fs
from botocore import exceptions as boto  # type: ignore[import-untyped]

from retort.errors import StoreUnavailable

BLOCK_BYTES = 8 * 2**20
CONNECT_SECONDS = 4
READ_SECONDS = 20


def filesystem(endpoint_url: str | None) -> s3fs.S3FileSystem:
    """The bucket's file system. s3fs caches one per process and thread, so call this again after a fork."""
    system = s3fs.S3FileSystem(
        endpoint_url=endpoint_url,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            # Many S3-compatible servers do not support checksum trailers; every file here has a sha256 anyway.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    system.retries = 2
    return system


def open_remote(system: s3fs.S3FileSystem, path: str) -> BinaryIO:
    """Open a stream of ranged GETs that holds at most two blocks in memory."""
    file = system.open(path, "rb", block_size=BLOCK_BYTES)
    file.cache.fetcher = partial(_whole_range, file, file.cache.fetcher)
    return cast(BinaryIO, BufferedReader(file, 2**20))


def _whole_range(file: Any, fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """Fetch a range. A short answer is asked for once more, since a reader would take it for the end of the file."""
    wanted, data = min(end, file.size) - start, b""
    for _ in range(2):
        data = fetch(start, end)
        if len(data) == wanted:
            return data
    raise OSError(f"{len(data)} bytes came where {wanted} were asked for")


@contextmanager
def remote_errors(address: str, endpoint_url: str | None) -> Iterator[None]:
    """Turn every failure of a bucket into StoreUnavailable, except for a missing file."""
    try:
        yield
    except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError) as error:
        if isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchBucket":
            raise
        raise StoreUnavailable(_sentence(error, address, endpoint_url)) from error


def _sentence(error: Exception, address: str, endpoint_url: str | None) -> str:
    bucket = address.removeprefix("s3://").split("/")[0]
    server = re.sub(r"//.*@", "//", endpoint_url) if endpoint_url else "the S3 service"
    if error_code(error) == "NoSuchBucket":
        return f"bucket '{bucket}' does not exist at {server}: create it, or correct '{address}'"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return f"no credentials for bucket '{bucket}': set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, PermissionError):
        return (
            f"bucket '{bucket}' at {server} refuses ({error_code(error) or error}): "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | aiohttp.ClientConnectionError | TimeoutError):
        return f"{server} cannot be reached for bucket '{bucket}' ({type(error).__name__}): is it running?"
    return f"bucket '{bucket}' at {server} fails: {error}"


def error_code(error: BaseException) -> str | None:
    """The S3 error code behind an exception from s3fs."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) and "Error" in response else None
