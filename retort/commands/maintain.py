"""`retort maintain`: deletes artifacts that no registered student, recent run or run in progress needs.

Mark and sweep over one store. These are kept:

- every registered student with its lineage, for each registry that runs of this store were tracked in;
- the artifacts of each config's last runs, with their lineage;
- the last artifact of each config's steps (`latest/`), if it was used within that many days, since what a killed run
  left is paid for;
- everything used within the grace period, with its lineage.

A lineage ends at a student that a warm start used: the student is kept, but not what it was made from. Everything else
is deleted, as are files without a manifest, half-written files, uploads in parts that nobody finished, dangling
pointers, old run records and old work orders. Kept artifacts whose files are gone are told. The ledgers of completions
are never swept, but those with many shards are compacted.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import NamedTuple

from retort.config import RecipeConfig, expand
from retort.errors import StoreUnavailable, TrackingUnavailable
from retort.records.base import Record
from retort.steps.pseudolabel_llm import COMPACT_FROM
from retort.store import Manifest, Store
from retort.store.ancestry import lineage_of, warm_start
from retort.store.listing import FoundFile, Upload
from retort.store.opening import refusals, usable_store
from retort.store.retention import Holding, holdings, is_artifacts, retire
from retort.store.runs import RUNS, read_runs, run_paths
from retort.store.store import CONNECTIONS, LATEST, REPAIR
from retort.teachers.ledger import Ledger
from retort.tracking.address import check_reachable, database_file, tracking_uri, without_secrets
from retort.tracking.registry import versions

NIGHTS = 7
GRACE_HOURS = 24.0
ORDERS, LEDGERS = "orders", "ledger"
"""Folders of a store: work orders for runs of single steps, and each teacher's completions."""


class Amount(Record):
    count: int
    bytes: int


class Maintained(Record):
    """What was freed, or would have been."""

    deleted: bool
    """If False, nothing was changed."""
    registered: int
    """Registered students."""
    runs: int
    """Runs whose artifacts are kept."""
    kept: dict[str, Amount]
    """Complete artifacts by kind, and files of the ledgers."""
    freed: dict[str, Amount]
    """Artifacts by kind, and `leftovers` (files that no manifest names, and half-written ones), `uploads` (in parts and
    never finished), `pointers`, `runs`, `orders`."""
    broken: tuple[str, ...] = ()
    """A sentence for each kept artifact whose manifest names files that are gone or have another size."""
    compacted: dict[str, int]
    """Shards that were merged, or would have been, by the folder of each ledger that has too many."""

    def lines(self) -> Iterator[str]:
        """A summary for people."""
        yield f"{self.registered} registered students and {self.runs} runs keep what they rest on:"
        yield from _table(self.kept)
        yield "freed:" if self.deleted else "would be freed (--delete does it):"
        yield from _table(self.freed)
        yield from self.broken
        for folder, shards in self.compacted.items():
            yield f"{folder}: {shards} shards {'merged' if self.deleted else 'would be merged'}, no completion lost"


def maintain(
    config: RecipeConfig, *, nights: int = NIGHTS, grace_hours: float = GRACE_HOURS, delete: bool = False
) -> Maintained:
    """Sweep the config's store. Without `delete`, only report what would be deleted.

    Keeps the last `nights` runs of each config, and everything used within `grace_hours`, which must be longer than any
    run takes. Raises TrackingUnavailable, without deleting anything, if a registry cannot say which students it has.
    Raises ConfigError, StoreUnavailable, DamagedArtifact.
    """
    with refusals():
        inventory = Inventory(usable_store(config), nights, time.time() - 3600 * grace_hours)
        tracked = _tracked(inventory, config)
        registered = set(_registered(config, tracked))
        marked = mark(inventory, [*registered, *inventory.roots()], {manifest.key for manifest in tracked.values()})
        freed = sweep(inventory, marked, delete)
        return Maintained(
            deleted=delete,
            registered=len(registered),
            runs=len(inventory.kept_runs),
            kept=_kept(inventory, marked.keys()),
            freed=freed,
            broken=tuple(_broken(inventory, marked)),
            compacted=dict(_compacted(inventory.store, delete)),
        )


@dataclass(frozen=True)
class Inventory:
    """A snapshot of a store's contents."""

    store: Store
    nights: int
    unused_since: float
    """Start of the grace period, in Unix seconds."""

    @cached_property
    def held(self) -> dict[str, Holding]:
        return holdings(self.store)

    @cached_property
    def run_paths(self) -> list[str]:
        """Paths of all run records, by config, newest first."""
        return run_paths(self.store)

    @cached_property
    def kept_runs(self) -> list[str]:
        """Paths of the records of each config's last runs."""
        by_config = groupby(self.run_paths, key=lambda path: path.split("/")[1])
        return [path for _, paths in by_config for path in list(paths)[: self.nights]]

    def roots(self) -> Iterator[str]:
        """Keys of the artifacts to keep along with their lineage, besides registered students."""
        for record in read_runs(self.store, self.kept_runs):
            for artifact in record.artifacts:
                kind, _, key = artifact.rpartition("/")
                self.check_listed(kind, key)
                yield key
        lately = min(self.unused_since, time.time() - 86400 * self.nights)
        for pointer in self.store.pointers().values():
            holding = self.held.get(pointer.key)
            if holding and holding.last_used >= lately:
                yield pointer.key
        yield from (key for key, holding in self.held.items() if holding.last_used >= self.unused_since)

    def check_listed(self, kind: str, key: str) -> None:
        """Raises StoreUnavailable if the listing lacks an artifact that exists: after such a listing, what the artifact
        was made from would be deleted."""
        if key not in self.held and self.store.find(kind, key) is not None:
            raise StoreUnavailable(
                f"the listing of {self.store.root} lacks {kind}/{key}, which is there: nothing was deleted, try later"
            )


def _tracked(inventory: Inventory, config: RecipeConfig) -> dict[str, Manifest]:
    """The newest tracking artifact for each registry that runs of this store were tracked in, by expanded address."""
    keys = [key for key, holding in inventory.held.items() if holding.kind == "tracking"]
    found = sorted(_manifests(inventory, keys), key=lambda manifest: manifest.created_at)
    return {_known_uri(str(manifest.fingerprint["params"]["uri"]), config): manifest for manifest in found}


def _known_uri(uri: str, config: RecipeConfig) -> str:
    """The expanded address. Who may write the store can name any server in a manifest, so what is sent to a server,
    credentials and the values of variables, goes only to those that the config or the environment names too."""
    own = [config.tracking.uri] if config.tracking else []
    named = [*own, *(os.environ[name] for name in ("MLFLOW_TRACKING_URI",) if name in os.environ)]
    if uri in own or ("${" not in uri and database_file(uri)):
        return expand(uri)
    whole = re.fullmatch(r"\$\{(\w+)\}", uri)
    expanded = os.environ.get(whole[1], uri) if whole else uri
    if expanded in map(expand, named):
        return expanded
    raise TrackingUnavailable(
        f"a run of this store was tracked at '{without_secrets(uri)}', which is neither tracking.uri nor "
        "MLFLOW_TRACKING_URI, so it is not asked, and nothing is deleted: give it as --set tracking.uri=..., or, if it "
        "is gone for good, delete the folder tracking/ of the store"
    )


def _registered(config: RecipeConfig, tracked: Mapping[str, Manifest]) -> Iterator[str]:
    """Keys of all registered students."""
    configured = [tracking_uri(config.tracking)] if config.tracking else []
    for uri in sorted({*tracked, *configured}):
        check_reachable(uri)
        file = database_file(uri)
        if file is not None and not file.is_file() and uri in tracked:
            name = tracked[uri].fingerprint["params"]["name"]
            raise TrackingUnavailable(
                f"tracking.uri = '{uri}': there is no such database, and '{name}' was tracked in it, so students may "
                "be registered there and nothing is deleted: run this where the database is, or, if it is gone for "
                "good, delete the folder tracking/ of the store"
            )
        yield from (version.key for version in versions(uri))


def mark(inventory: Inventory, roots: Iterable[str], alone: Collection[str] = ()) -> dict[str, Manifest]:
    """Return the manifests of `roots` with their lineage, and of `alone` without it, by key.

    Reads one level of the lineage at a time, since a bucket can serve many requests at once.
    """
    marked: dict[str, Manifest] = {}
    level, ends = set(roots), set(alone)
    while level:
        found = _manifests(inventory, level - marked.keys())
        marked.update((manifest.key, manifest) for manifest in found)
        level = {key for manifest in found for _, key in lineage_of(manifest)}
        for manifest in found:
            for needed in level & manifest.input_kinds.keys():
                inventory.check_listed(manifest.input_kinds[needed], needed)
        ends |= {key for manifest in found if (key := warm_start(manifest))}
    marked.update((manifest.key, manifest) for manifest in _manifests(inventory, ends - marked.keys()))
    return marked


def _manifests(inventory: Inventory, keys: Collection[str]) -> list[Manifest]:
    """Read the manifests of complete artifacts."""
    held = [holding for key in keys if (holding := inventory.held.get(key)) and holding.is_complete]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = pool.map(lambda holding: inventory.store.find(holding.kind, holding.key), held)
        return [manifest for manifest in found if manifest is not None]


def sweep(inventory: Inventory, marked: Mapping[str, Manifest], delete: bool) -> dict[str, Amount]:
    """Delete everything that is neither marked nor used within the grace period. Returns how much was freed, or would
    have been without `delete`."""
    doomed = list(_doomed(inventory, marked))
    sizes = [one.bytes for one in doomed]
    if delete:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            sizes = list(pool.map(lambda one: one.free(), doomed))
    return _summed((one.what, size) for one, size in zip(doomed, sizes, strict=True) if size)


class Doomed(NamedTuple):
    """Something to free."""

    what: str
    """A key of `Maintained.freed`."""
    bytes: int
    free: Callable[[], int]
    """Returns the bytes freed; 0 if it was kept because somebody used it in the meantime."""


def _doomed(inventory: Inventory, marked: Mapping[str, Manifest]) -> Iterator[Doomed]:
    store, since = inventory.store, inventory.unused_since
    for key, holding in inventory.held.items():
        if key in marked:
            if strays := holding.strays(marked[key], since):
                yield _files("leftovers", store, holding.folder, strays)
        elif holding.last_used < since:
            what = holding.kind if holding.is_complete else "leftovers"
            yield Doomed(what, holding.bytes, partial(retire, store, holding, since))
    for file in store.place.drafts():
        folder = file.path.partition("/")[0]
        if file.modified < since and folder not in (LATEST, RUNS, ORDERS) and not is_artifacts(file.path):
            yield _files("leftovers", store, folder if "/" in file.path else "", [file])
    for upload in store.place.uploads():
        if upload.started < since:
            yield _upload(store, upload)
    kept = {key for key, holding in inventory.held.items() if key in marked or holding.last_used >= since}
    pointers = {path for path, pointer in store.pointers().items() if pointer.key not in kept}
    runs = set(inventory.run_paths) - set(inventory.kept_runs)
    for folder, what, old in ((LATEST, "pointers", pointers), (RUNS, "runs", runs), (ORDERS, "orders", None)):
        for file in store.place.walk(folder):
            is_draft = file.path.rpartition("/")[2].startswith(".")
            if file.modified < since and (is_draft or old is None or file.path in old):
                yield _files("leftovers" if is_draft else what, store, folder, [file])


def _files(what: str, store: Store, folder: str, files: Sequence[FoundFile]) -> Doomed:
    """Files to free. `folder` contains them, at any depth."""
    size = sum(file.bytes for file in files)

    def free() -> int:
        store.place.remove_files(folder, [file.path for file in files])
        return size

    return Doomed(what, size, free)


def _upload(store: Store, upload: Upload) -> Doomed:
    size = store.place.bytes_up(upload)

    def free() -> int:
        store.place.abort(upload)
        return size

    return Doomed("uploads", size, free)


def _broken(inventory: Inventory, marked: Mapping[str, Manifest]) -> Iterator[str]:
    for key, manifest in marked.items():
        if lacking := inventory.held[key].lacking(manifest):
            yield (f"{manifest.kind}/{key} of {manifest.name}: {', '.join(lacking)} gone or of another size; {REPAIR}")


def _summed(parts: Iterable[tuple[str, int]]) -> dict[str, Amount]:
    """Sum up (what, bytes) pairs by what."""
    counts, sizes = Counter[str](), Counter[str]()
    for what, size in parts:
        counts[what] += 1
        sizes[what] += size
    return {what: Amount(count=counts[what], bytes=sizes[what]) for what in sorted(counts)}


def _table(amounts: Mapping[str, Amount]) -> Iterator[str]:
    for what, amount in amounts.items():
        yield f"  {what:14}{amount.count:8,}{amount.bytes / 1e6:14,.1f} MB"
    if not amounts:
        yield "  nothing"


def _kept(inventory: Inventory, marked: Collection[str]) -> dict[str, Amount]:
    held = [(holding.kind, holding.bytes) for key, holding in inventory.held.items() if key in marked]
    ledgers = [(LEDGERS, file.bytes) for file in inventory.store.place.walk(LEDGERS)]
    return _summed([*held, *ledgers])


def _compacted(store: Store, delete: bool) -> Iterator[tuple[str, int]]:
    """Compact each ledger with many shards. Yields (folder, number of shards merged, or that would have been)."""
    for name in store.place.folders(LEDGERS):
        try:
            teacher = json.loads(store.place.read(f"{LEDGERS}/{name}/teacher.json"))
        except FileNotFoundError:  # not one of our ledgers
            continue
        ledger = Ledger(store, teacher)
        shards = len(ledger.files())
        if ledger.folder == f"{LEDGERS}/{name}" and shards > COMPACT_FROM:
            yield ledger.folder, ledger.compact() if delete else shards
