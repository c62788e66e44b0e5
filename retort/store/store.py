"""The artifact store: finds artifacts by key, publishes them with the manifest last, and verifies what it fetches."""

import contextlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from pydantic import ValidationError

from retort.errors import ConfigError, DamagedArtifact
from retort.io.scratch import scratch, sweep
from retort.records.base import ArtifactRef, Record, digest
from retort.store.contents import fault_of, is_intact, stored_files
from retort.store.folder import Folder
from retort.store.manifest import Manifest, StepOutput, StoredFile

if TYPE_CHECKING:
    from retort.store.bucket import Bucket

PACKAGES = ("retort", "torch", "transformers", "numpy", "pyarrow")
MANIFEST, USED = "manifest.json", "used"
"""Files in an artifact's folder. `used` is empty; its modification time is when a run last found the artifact."""
LATEST = "latest"
CONNECTIONS = 8
"""Concurrent requests to a bucket."""
PUT_BACK_SECONDS = 0.5
"""Longest time that a sweep takes to put a manifest back, see `retention`."""
REPAIR = "`retort run CONFIG --repair` makes it again"
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Keyed(Protocol):
    """What the store needs to know about a step."""

    @property
    def name(self) -> str: ...
    @property
    def artifact_kind(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, tuple[ArtifactRef, ...]]: ...


class Pointer(Record):
    """The last artifact of a config's step."""

    kind: str
    key: str


class Store:
    """Artifacts below `root`, a folder or `s3://bucket/prefix` (already expanded).

    Safe to use from several processes and threads and after a fork. Methods raise StoreUnavailable if the storage
    denies access or cannot be reached, and DamagedArtifact if a file differs from what was written. `cache` is the
    folder that a bucket's artifacts are downloaded to.
    """

    def __init__(self, root: str, endpoint_url: str | None = None, cache: Path | None = None) -> None:
        self.root = root.rstrip("/") or "/"
        self.endpoint_url = endpoint_url
        self._place = _place(self.root, endpoint_url)
        self._cache = cache or _default_cache()

    @property
    def place(self) -> "Folder | Bucket":
        """The files below `root`, for things that are not artifacts, such as the ledger."""
        return self._place

    @property
    def cache(self) -> Path:
        """The folder that a bucket's files are downloaded to."""
        return self._cache

    def find(self, kind: str, key: str) -> Manifest | None:
        """Read the manifest with a single GET. None is a miss."""
        path = f"{artifact_folder(kind, key)}/{MANIFEST}"
        try:
            return read_again(lambda: _parse(self._place.read(path), kind, key, self._address(path)))
        except FileNotFoundError:
            return None

    def publish(self, step: Keyed, folder: Path, product: StepOutput, seconds: float, run_name: str) -> ArtifactRef:
        """Store all files below `folder` as the step's artifact, and point `latest` to it.

        An artifact that already exists is kept: it has the same key, so it means the same.
        """
        manifest = self.reuse(run_name, step)
        if manifest is None:
            manifest = self._upload(step, folder, product, seconds)
            self._point(run_name, step)
        return self.ref(manifest)

    def reuse(self, run_name: str, step: Keyed) -> Manifest | None:
        """Find the step's artifact for use in a run, protected from a concurrent sweep (see `retention`). None is a
        miss."""
        if self.find(step.artifact_kind, step.key) is None:
            return None
        self.point(run_name, step)
        return self.find(
            step.artifact_kind, step.key
        )  # a concurrent sweep has either seen the touch or removed the manifest

    def point(self, run_name: str, step: Keyed) -> None:
        """Record the step's artifact as the config's latest, so that a plan can say what changed since, and as just
        used, so that no sweep deletes it."""
        self._place.touch(f"{artifact_folder(step.artifact_kind, step.key)}/{USED}")
        self._point(run_name, step)

    def pointers(self) -> dict[str, Pointer]:
        """The latest artifacts of all configs, by the pointers' paths below the root. Raises DamagedArtifact."""
        paths = [file.path for file in self._place.walk(LATEST) if not file.path.rpartition("/")[2].startswith(".")]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            found = dict(zip(paths, pool.map(self.pointer, paths), strict=True))
        return {path: pointer for path, pointer in found.items() if pointer is not None}

    def pointer(self, path: str) -> Pointer | None:
        """Read a pointer; None if there is none."""
        try:
            return read_again(lambda: self._read_pointer(path))
        except FileNotFoundError:
            return None

    def _read_pointer(self, path: str) -> Pointer:
        try:
            return Pointer.model_validate_json(self._place.read(path))
        except ValidationError as error:
            raise DamagedArtifact(f"{self._address(path)} is no pointer to an artifact: delete it") from error

    def _point(self, run_name: str, step: Keyed) -> None:
        path = _pointer_path(run_name, step.name)
        pointer = Pointer(kind=step.artifact_kind, key=step.key).model_dump_json().encode()
        with contextlib.suppress(FileNotFoundError):
            if self._place.read(path) == pointer:
                return
        self._place.write(path, pointer)

    def latest(self, run_name: str, step_name: str) -> Manifest | None:
        """The manifest of this step's last artifact, if it still exists."""
        pointer = self.pointer(_pointer_path(run_name, step_name))
        return self.find(pointer.kind, pointer.key) if pointer else None

    def ref(self, manifest: Manifest) -> ArtifactRef:
        return ArtifactRef(
            uri=self._address(artifact_folder(manifest.kind, manifest.key)),
            kind=manifest.kind,
            key=manifest.key,
            rows=manifest.rows,
            metrics=manifest.metrics,
        )

    def files_address(self, manifest: Manifest) -> str:
        """Address of the folder with the files themselves, for programs that read them without Retort."""
        return self._address(files_folder(manifest))

    def fetch(self, ref: ArtifactRef) -> Path:
        """A local folder with the artifact's files, verified. Do not write into it."""
        return self.open(ref)[1]

    def manifest_of(self, ref: ArtifactRef) -> Manifest:
        """Raises DamagedArtifact if it is gone."""
        manifest = self.find(ref.kind, ref.key)
        if manifest is None:
            raise DamagedArtifact(f"artifact {ref.uri} has no manifest (any more); {REPAIR}")
        return manifest

    def open(self, ref: ArtifactRef) -> tuple[Manifest, Path]:
        """Return (manifest, the folder that `fetch` returns)."""
        manifest = self.find(ref.kind, ref.key)
        if manifest is None:  # a sweep that notices a concurrent use puts the manifest back within a moment
            time.sleep(PUT_BACK_SECONDS)
            manifest = self.manifest_of(ref)
        if isinstance(self._place, Folder):
            self.verify(manifest)
            return manifest, self._place.root / files_folder(manifest)
        return manifest, self._download(self._place, manifest)

    def open_file(self, manifest: Manifest, path: str) -> Path:
        """One file of an artifact, verified, on local disk, without the others. Do not write into it. Raises
        DamagedArtifact."""
        file = next((file for file in manifest.files if file.path == path), None)
        if file is None:
            raise DamagedArtifact(f"artifact {self.ref(manifest).uri} has no file '{path}'; {REPAIR}")
        if isinstance(self._place, Folder):
            read_again(partial(self._verify_file, manifest, file))
            return self._place.root / files_folder(manifest) / path
        folder = self._cache / manifest.kind / manifest.key / f"{manifest.folder}.files"
        return self._in_cache(self._place, manifest, file, folder)

    def verify(self, manifest: Manifest) -> None:
        """Read every file and check its size and sha256. Raises DamagedArtifact."""
        for file in manifest.files:
            read_again(partial(self._verify_file, manifest, file))

    def _verify_file(self, manifest: Manifest, file: StoredFile) -> None:
        try:
            with self._place.open(f"{files_folder(manifest)}/{file.path}") as stream:
                fault = fault_of(stream, file)
        except FileNotFoundError:
            fault = "is missing"
        if fault:
            raise self._damaged(manifest, file, fault)

    def discard(self, kind: str, key: str) -> None:
        """Delete an artifact if it exists: the manifest first, so that nobody finds half of it, then the files that
        were there before, and not those of a run that finds no artifact and publishes one anew."""
        folder = artifact_folder(kind, key)
        manifest = f"{folder}/{MANIFEST}"
        files = [file.path for file in self._place.walk(folder) if file.path != manifest]
        self._place.remove(manifest)
        self._place.remove_files(folder, files)

    def check_writable(self) -> None:
        """Write and delete a probe. Raises ConfigError for a folder, StoreUnavailable for a bucket."""
        self._place.check_writable()

    def _upload(self, step: Keyed, folder: Path, product: StepOutput, seconds: float) -> Manifest:
        files = stored_files(folder)
        manifest = Manifest(
            **dict(product),
            kind=step.artifact_kind,
            key=step.key,
            name=step.name,
            fingerprint=step.fingerprint,
            input_kinds={ref.key: ref.kind for refs in step.inputs.values() for ref in refs},
            folder=self._unused_folder(step, files),
            files=files,
            versions=_versions(),
            seconds=seconds,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        for file in files:
            self._place.upload(folder / file.path, f"{files_folder(manifest)}/{file.path}")
        if (first := self.find(step.artifact_kind, step.key)) is not None:
            return first
        # json and not pydantic: a metric may be NaN, which pydantic would write as null.
        data = json.dumps(manifest.model_dump(by_alias=True), ensure_ascii=False, indent=1)
        self._place.write(f"{artifact_folder(step.artifact_kind, step.key)}/{MANIFEST}", data.encode())
        return manifest

    def _unused_folder(self, step: Keyed, files: Sequence[StoredFile]) -> str:
        """Name of the folder for the artifact's files: a digest of them, unless something is there already, which a
        sweep may be about to delete (see `retention`)."""
        name = digest([[file.path, file.sha256] for file in files])[:12]
        is_used = any(self._place.walk(f"{artifact_folder(step.artifact_kind, step.key)}/{name}"))
        return uuid4().hex[:12] if is_used else name

    def _download(self, bucket: "Bucket", manifest: Manifest) -> Path:
        target = self._cache / manifest.kind / manifest.key / manifest.folder
        if target.is_dir():
            for file in manifest.files:
                self._in_cache(bucket, manifest, file, target)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._draft() as draft:
            for file in manifest.files:
                read_again(partial(self._download_file, bucket, manifest, file, draft))
            try:
                draft.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process has already downloaded the same files
                    raise
        return target

    def _in_cache(self, bucket: "Bucket", manifest: Manifest, file: StoredFile, folder: Path) -> Path:
        """The file in a folder of the cache, downloaded if it is not there or a crash has spoiled it: replaced on its
        own, since other processes may be reading the folder."""
        target = folder / file.path
        if not is_intact(target, file):
            with self._draft() as draft:
                read_again(partial(self._download_file, bucket, manifest, file, draft))
                target.parent.mkdir(parents=True, exist_ok=True)
                (draft / file.path).replace(target)
        return target

    @contextlib.contextmanager
    def _draft(self) -> Iterator[Path]:
        """A folder to download to. What killed downloads left goes first: a machine that only serves or predicts runs
        nothing else that would delete it."""
        sweep(self._cache)
        with scratch("download", self._cache) as draft:
            yield draft

    def _download_file(self, bucket: "Bucket", manifest: Manifest, file: StoredFile, folder: Path) -> None:
        try:
            bucket.download(f"{files_folder(manifest)}/{file.path}", folder / file.path)
        except FileNotFoundError:
            raise self._damaged(manifest, file, "is missing") from None
        with (folder / file.path).open("rb") as stream:
            fault = fault_of(stream, file)
        if fault:
            raise self._damaged(manifest, file, fault)

    def _damaged(self, manifest: Manifest, file: StoredFile, fault: str) -> DamagedArtifact:
        uri = self._address(artifact_folder(manifest.kind, manifest.key))
        return DamagedArtifact(f"artifact {uri} of {manifest.name}: file '{file.path}' {fault}; {REPAIR}")

    def _address(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"


def read_again(read: Callable[[], T]) -> T:
    """Return the result of `read`, which is called once more if it raises DamagedArtifact: a server or a proxy may send
    a short or cut answer although what is stored is whole."""
    try:
        return read()
    except DamagedArtifact as error:
        _log.warning("read again, since %s", error)
        return read()


def _place(root: str, endpoint_url: str | None) -> "Folder | Bucket":
    if root.startswith("s3://"):
        from retort.store.bucket import Bucket

        return Bucket(root, endpoint_url)
    if "://" in root:
        raise ConfigError(f"store.root '{root}' is not supported; use a folder or s3://bucket/prefix")
    return Folder(Path(root))


def _default_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "retort"


def artifact_folder(kind: str, key: str) -> str:
    """Path below the root. Raises DamagedArtifact for what is neither, as a pointer or manifest may name that somebody
    else wrote."""
    if not re.fullmatch("[a-z][a-z-]*", kind) or not re.fullmatch("[0-9a-f]{2,64}", key):
        raise DamagedArtifact(f"{f'{kind}/{key}'[:200]!r} names no artifact: that is KIND/KEY, and KEY has hex digits")
    return f"{kind}/{key[:2]}/{key}"


def files_folder(manifest: Manifest) -> str:
    """Path below the root."""
    return f"{artifact_folder(manifest.kind, manifest.key)}/{manifest.folder}"


def _pointer_path(run_name: str, step_name: str) -> str:
    return f"{LATEST}/{run_name}/{step_name}.json"


def _parse(data: bytes, kind: str, key: str, address: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedArtifact(f"{address} is no manifest ({where} {first['msg']}); {REPAIR}") from error
    if (manifest.kind, manifest.key) != (kind, key):
        raise DamagedArtifact(f"{address} is the manifest of {manifest.kind} {manifest.key}; {REPAIR}")
    # If somebody else can write to the bucket, they must not make us write outside our cache.
    unsafe = [file.path for file in manifest.files if not _stays_below(file.path)]
    if unsafe or not re.fullmatch("[0-9a-f]{12}", manifest.folder):
        raise DamagedArtifact(
            f"{address} names a file outside its artifact: {(*unsafe, manifest.folder)[0]!r}; {REPAIR}"
        )
    return manifest


def _stays_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in path and len(path) < 1000


def _versions() -> dict[str, str]:
    """Read from the packages' metadata, since importing torch for its version would take seconds."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
