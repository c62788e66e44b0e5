"""The files behind an address: one file, a folder, or a glob, on disk or in a bucket."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs

from retort.config import expand
from retort.errors import DataError, StoreUnavailable

FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), "conll"),
    **dict.fromkeys((".mrg", ".ptb"), "treebank"),
    ".parquet": "parquet",
}
"""By extension. All but Parquet may be compressed."""
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors)(\.txt)?"
    r"|_(success|started|committed|metadata|common_metadata)(_\w+)?"
    r"|(dataset_infos?|dataset_dict|state|croissant)\.json"
    r"|.*\.(md|rst|bib|cff|py|ya?ml|pdf|html?|png|jpe?g|svg|sha256|md5)",
    re.IGNORECASE,
)
"""Names of what lies in the folder of a data set beside the data."""
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class DataFile:
    name: str
    """The address as written in the config: `${VAR}` is not expanded, since its value may be a secret."""
    path: str
    """The path within `filesystem`."""
    filesystem: Any
    info: dict[str, Any]
    endpoint_url: str | None

    @property
    def format(self) -> str:
        """One of jsonl, csv, conll, treebank, parquet. Raises DataError."""
        name = self.path.lower()
        plain = name.removesuffix(self.compression)
        for extension, kind in FORMATS.items():
            if (name if kind == "parquet" else plain).endswith(extension):
                return kind
        if name.endswith(_SPREADSHEETS):
            raise DataError(f"{self.name}: spreadsheets are not read; save it as CSV (UTF-8)")
        allowed, compressed = ", ".join(FORMATS), ", ".join(COMPRESSIONS)
        raise DataError(
            f"{self.name}: the extension says no format that can be read; allowed: {allowed}, all but .parquet also "
            f"compressed ({compressed}); a pattern takes only some files of a folder (pool/*.parquet)"
        )

    @property
    def compression(self) -> str:
        """One of `COMPRESSIONS`; empty if the name says none."""
        return next((end for end in COMPRESSIONS if self.path.lower().endswith(end)), "")

    @property
    def is_local(self) -> bool:
        return "file" in _protocols(self.filesystem)

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """Open the raw bytes. Raises DataError for a missing file, StoreUnavailable if the bucket fails."""
        with self.failures(), self._open() as stream:
            yield stream

    def failures(self) -> AbstractContextManager[None]:
        return _failures(self.name, self.path, self.filesystem, self.endpoint_url)

    def identity(self) -> str:
        """A string that changes with the content: the sha256 of a local file, the server's metadata of a remote one."""
        if self.is_local:
            with self.reading() as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        if "ETag" in self.info:
            return f"{self.info['ETag']} {self.info['size']}"
        return str(self.filesystem.ukey(self.path))

    def _open(self) -> BinaryIO:
        if self.is_local:
            return open(self.path, "rb")
        from retort.io.s3 import open_remote

        return open_remote(self.filesystem, self.path)


def data_files(address: str, endpoint_url: str | None) -> list[DataFile]:
    """All files at the address, sorted by path. Folders and patterns skip hidden files, and documents such as a README;
    folders also markers such as `_SUCCESS`.

    Raises DataError if there are none.
    """
    expanded = expand(address)
    system, path = _filesystem(expanded, expand(endpoint_url) if endpoint_url else None)
    with _failures(address, path, system, endpoint_url):
        info = _info(system, path)
        if info is not None and info["type"] != "directory":
            return [DataFile(address, path, system, info, endpoint_url)]
        infos = _listing(system, path, info is not None)
    if not infos:
        raise DataError(f"{address}: {_nothing(address, info is not None)}")
    base, root = (address, path) if info is not None else (_before_wildcard(address), _before_wildcard(path))
    return [
        DataFile(_joined(base, _below(root, found)), found, system, infos[found], endpoint_url)
        for found in sorted(infos)
    ]


def _filesystem(address: str, endpoint_url: str | None) -> tuple[Any, str]:
    if address.startswith("s3://"):
        from retort.io.s3 import filesystem

        return filesystem(endpoint_url), address.removeprefix("s3://").rstrip("/")
    try:
        return cast(tuple[Any, str], url_to_fs(address))
    except (ValueError, ImportError) as error:
        raise DataError(f"{address}: {error}") from error


def _info(system: Any, path: str) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], system.info(path))
    except FileNotFoundError:
        return None


def _listing(system: Any, path: str, is_folder: bool) -> dict[str, dict[str, Any]]:
    if not is_folder and not _WILDCARD.search(path):
        return {}
    try:
        infos = system.find(path, detail=True) if is_folder else system.glob(path, detail=True)
    except FileNotFoundError:
        return {}
    root, markers = (path, "._") if is_folder else (_before_wildcard(path), ".")
    return {
        found: info
        for found, info in infos.items()
        if info["type"] != "directory"
        and not any(part[0] in markers for part in _below(root, found).split("/") if part)
        and not _DOCUMENTS.fullmatch(found.rpartition("/")[2])
    }


def _nothing(address: str, is_folder: bool) -> str:
    if is_folder:
        return "the folder holds no files"
    return "no file matches this pattern" if _WILDCARD.search(address) else "there is no such file or folder"


def _before_wildcard(pattern: str) -> str:
    """The part of a glob before its first wildcard, cut at a folder boundary."""
    match = _WILDCARD.search(pattern)
    return pattern[: match.start()].rpartition("/")[0] if match else pattern


def _joined(base: str, relative: str) -> str:
    return f"{base.rstrip('/')}/{relative}" if base else relative


def _below(root: str, path: str) -> str:
    return path.removeprefix(root).lstrip("/")


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


@contextmanager
def _failures(name: str, path: str, system: Any, endpoint_url: str | None) -> Iterator[None]:
    """Translate errors of opening or reading the file. Errors in its content are handled by the readers."""
    try:
        if "s3" in _protocols(system):
            from retort.io.s3 import remote_errors

            with remote_errors(f"s3://{path}", endpoint_url):
                yield
        else:
            yield
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file") from error
    except PermissionError as error:
        raise DataError(f"{name}: may not be read ({os.strerror(error.errno or 13)})") from error
    except OSError as error:
        if "file" in _protocols(system):
            raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
        raise StoreUnavailable(f"{name}: cannot be read ({error})") from error
