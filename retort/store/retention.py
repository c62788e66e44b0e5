"""Lists a store's artifacts, and deletes unused ones while others read and write.

An artifact's last use is the newest modification time in its folder: `Store.point` touches the file `used` there
whenever a run finds the artifact. Artifacts used within the grace period are never deleted, so a run in progress can
rely on everything that it found, as long as it takes less time than that. Since a run may find an artifact between the
sweep's look and its deletion,

    the run                       the sweep (`retire`)
    1 reads the manifest          1 checks when the artifact was last used
    2 touches `used`              2 removes the manifest, so that nobody finds the artifact anymore
    3 reads the manifest again    3 checks again: if `used` is new, puts the manifest back
    (`Store.reuse`)               4 otherwise deletes the files that it saw

and either the sweep sees the touch in its step 3, or the run sees in its step 3 that the artifact is gone, which is a
miss. A run may also publish over leftovers, or over an artifact that is being deleted. None of its files may have a
path that a sweep has seen, so they go into another folder if there is anything in the one that their digest names
(`Store.publish`). A sweep deletes exactly the files that it saw, and a manifest only if it has read it; so does
`Store.discard`, which looks before it removes the manifest.

There are no locks. A sweep that dies leaves an artifact, or files without a manifest that the next sweep deletes.
Two concurrent sweeps could undo each other's decisions, so run one at a time. Only files of the form
<kind>/<2 hex digits>/<64 hex digits>/... are treated as artifacts.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field

from retort.store.listing import FoundFile
from retort.store.manifest import Manifest
from retort.store.store import MANIFEST, USED, Store, artifact_folder, files_folder

NO_ARTIFACTS = frozenset({"ledger", "latest", "runs", "orders", "reviews"})
"""Folders of a store that contain other things."""
_ARTIFACT = re.compile(r"([a-z][a-z-]*)/([0-9a-f]{2})/(\2[0-9a-f]{62})/.+")


@dataclass
class Holding:
    """An artifact's folder as listed: complete, or left behind by a writer that died."""

    kind: str
    key: str
    files: list[FoundFile] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Path below the store's root."""
        return artifact_folder(self.kind, self.key)

    @property
    def is_complete(self) -> bool:
        return any(file.path == f"{self.folder}/{MANIFEST}" for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def last_used(self) -> float:
        """Unix seconds."""
        return max(file.modified for file in self.files)

    def lacking(self, manifest: Manifest) -> list[str]:
        """Paths of the manifest's files that are not there, or have another size."""
        found = {file.path: file.bytes for file in self.files}
        below = files_folder(manifest)
        return [file.path for file in manifest.files if found.get(f"{below}/{file.path}") != file.bytes]

    def strays(self, manifest: Manifest, unused_since: float) -> list[FoundFile]:
        """Old files that do not belong to the artifact, from a second writer that was too late or one that died."""
        own = {f"{files_folder(manifest)}/{file.path}" for file in manifest.files}
        own |= {f"{self.folder}/{MANIFEST}", f"{self.folder}/{USED}"}
        return [file for file in self.files if file.path not in own and file.modified < unused_since]


def holdings(store: Store) -> dict[str, Holding]:
    """Everything that looks like an artifact, by key. Needs one listing per kind."""
    found: dict[str, Holding] = {}
    for kind in store.place.folders():
        if kind in NO_ARTIFACTS:
            continue
        for file in store.place.walk(kind):
            if match := _ARTIFACT.fullmatch(file.path):
                found.setdefault(match[3], Holding(match[1], match[3])).files.append(file)
    return found


def is_artifacts(path: str) -> bool:
    """Whether a file belongs into an artifact's folder, by its path below the root."""
    return _ARTIFACT.fullmatch(path) is not None


def retire(store: Store, holding: Holding, unused_since: float) -> int:
    """Delete an artifact, or what is left of one, unless it was used since `unused_since` (Unix seconds).

    Returns the bytes freed. Raises StoreUnavailable.
    """
    if _was_used(_look(store, holding), unused_since):
        return 0
    path = f"{holding.folder}/{MANIFEST}"
    manifest = b""
    with suppress(FileNotFoundError):  # leftovers: a manifest that comes now is one that a run publishes
        manifest = store.place.read(path)
        store.place.remove_files(holding.folder, [path])
    files = _look(store, holding)
    if _was_used(files, unused_since):
        if manifest and not any(file.path == path for file in files):
            store.place.write(path, manifest)
        return 0
    store.place.remove_files(holding.folder, [file.path for file in files])
    return sum(file.bytes for file in files) + len(manifest)


def _look(store: Store, holding: Holding) -> list[FoundFile]:
    return list(store.place.walk(holding.folder))


def _was_used(files: list[FoundFile], unused_since: float) -> bool:
    return any(file.modified >= unused_since for file in files)
