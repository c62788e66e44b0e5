"""A ledger's files: immutable Parquet shards, each named by a timestamp and a content hash.

A name ends in the first 16 hex digits of the content's SHA-256, so a shard can be verified on its own and a downloaded
one can be cached. DuckDB does not notice flipped bits, so only verified shards are read.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retort.errors import StoreUnavailable
from retort.io.database import BATCH_ROWS, spilling_database
from retort.io.parquet import count_rows
from retort.io.scratch import scratch
from retort.records.base import digest
from retort.store import Store
from retort.store.folder import Folder
from retort.teachers.top_logprobs import STORED_TYPE

_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("key", pa.binary(16)),
    pa.field("text", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("max_tokens", pa.int32()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("cached_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("scores", pa.list_(pa.float64())),
    pa.field("asked_at", pa.float64()),
    pa.field("top", STORED_TYPE),
    pa.field("logprob", pa.float64()),
]
SCHEMA = pa.schema(_COLUMNS)
OLDER_SCHEMAS = (pa.schema(_COLUMNS[:-1]), pa.schema(_COLUMNS[:-2]))
"""Of shards written before `logprob`, and before `top`; missing columns are read as null."""
PIECE_ROWS = 1_000_000
PIECE_BYTES = 200 * 2**20
CONNECTIONS = 8
LISTINGS = 20
LISTING_SECONDS = 300.0
"""So long, listings may each lack files of the one before: a compaction may have 100,000 shards to remove."""


class Shards:
    """The shards in one folder of a store. Methods raise StoreUnavailable if the storage cannot be used."""

    def __init__(self, store: Store, folder: str) -> None:
        self._place = store.place
        self._folder = folder
        self._address = f"{store.root}/{folder}"
        self._in_place = store.place.root / folder if isinstance(store.place, Folder) else None
        self._drafts = store.cache
        self._cache = store.cache / "ledger" / digest([store.root, folder])[:16]
        root = str(self._in_place.absolute()) if self._in_place else store.root
        self._aside = Folder(store.cache / "ledger-aside" / digest([root, store.endpoint_url, folder])[:16])
        self._faults: dict[str, str | None] = {}
        self.damaged: list[str] = []
        """One sentence for each damaged shard found by the last listing."""

    def names(self) -> list[str]:
        """Names of all shards, sorted by time. Lists until nothing has gone since the listing before: one taken while a
        compaction replaces shards could miss both the old and the new ones. New shards are no reason to list again."""
        end = time.monotonic() + LISTING_SECONDS
        before = self._place.list(self._folder)
        while not set(before) <= set(now := self._place.list(self._folder)):
            if time.monotonic() > end:
                raise StoreUnavailable(
                    f"each listing of ledger {self._address} lacks files of the one before, for {LISTING_SECONDS:.0f} s"
                )
            before = now
        return [name for name in now if name.endswith(".parquet")]

    def intact(self) -> dict[str, Path]:
        """Name and local file of every intact shard, sorted by time. This process verifies each shard only once."""
        for _ in range(LISTINGS):
            with suppress(FileNotFoundError):  # merged by another process since; the next listing has the new shard
                return self._look(self.names())
        raise StoreUnavailable(f"the shards of ledger {self._address} go while they are read, {LISTINGS} times now")

    def forget(self) -> None:
        """Forget all verdicts, so that every shard is verified again."""
        self._faults.clear()

    def write(self, table: pa.Table) -> None:
        """Write a table as one durable shard."""
        name, data = _shard(table)
        self._place.write(f"{self._folder}/{name}", data)

    def set_aside(self, table: pa.Table) -> Path:
        """Write a table as a shard on this machine's disk, for `take_in`; returns its folder."""
        self._aside.write(*_shard(table))
        return self._aside.root

    def aside(self) -> list[str]:
        """Names of the shards that were set aside on this machine, by whichever process."""
        try:
            return self._aside.list("")
        except StoreUnavailable:  # a store in a folder needs no cache, so there may be none that we can use
            return []

    def take_in(self, name: str) -> None:
        """Write a shard that was set aside to the storage."""
        with suppress(FileNotFoundError):  # another process was faster
            self._place.write(f"{self._folder}/{name}", self._aside.read(name))
            self._aside.remove(name)

    def upload(self, file: Path, newest: str) -> str:
        """Upload a merged shard durably and return its name, whose timestamp is that of the shard `newest`."""
        with file.open("rb") as stream:
            name = _name(newest.rpartition("-")[0], _sha256(stream))
        self._place.upload(file, f"{self._folder}/{name}")
        return name

    def remove(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self._place.remove, [f"{self._folder}/{name}" for name in names]))

    def _look(self, names: list[str]) -> dict[str, Path]:
        unseen = [name for name in names if name not in self._faults]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            self._faults.update(zip(unseen, pool.map(self._fault, unseen), strict=True))
        self.damaged = [
            f"ledger shard {self._address}/{name} is damaged ({fault}): its completions will be asked for again"
            for name in names
            if (fault := self._faults[name])
        ]
        if not self._in_place:
            self._clear_cache(names)
        return {name: self._local(name) for name in names if not self._faults[name]}

    def _clear_cache(self, names: list[str]) -> None:
        """Delete cached shards that are no longer stored. `names` was listed before the downloads, so a shard that it
        lacks may be one that another process has added and cached since."""
        unknown = {file.name for file in self._cache.glob("*.parquet")}.difference(names)
        if unknown:
            for gone in unknown.difference(self.names()):
                (self._cache / gone).unlink(missing_ok=True)

    def _local(self, name: str) -> Path:
        return (self._in_place or self._cache) / name

    def _fault(self, name: str) -> str | None:
        """What is wrong with a shard; None if it is intact. Also raises FileNotFoundError."""
        if self._in_place:
            with self._place.open(f"{self._folder}/{name}") as stream:
                return _fault_of(stream, name)
        # Twice: one download may be cut although the stored shard is whole, whose completions would be paid for again.
        return _fault_of_file(self._local(name)) and self._download(name) and self._download(name)

    def _download(self, name: str) -> str | None:
        with scratch("shard", self._drafts) as folder:
            self._place.download(f"{self._folder}/{name}", folder / name)
            self._cache.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(self._local(name))
        return _fault_of_file(self._local(name))


def _shard(table: pa.Table) -> tuple[str, bytes]:
    """Name and content of a shard."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    return _name(f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}", hashlib.sha256(data).hexdigest()), data


def _name(time: str, sha256: str) -> str:
    return f"{time}-{sha256[:16]}.parquet"


def _sha256(stream: BinaryIO) -> str:
    sha256 = hashlib.sha256()
    while block := stream.read(2**20):
        sha256.update(block)
    return sha256.hexdigest()


def _fault_of_file(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return _fault_of(stream, file.name)
    except FileNotFoundError:
        return "it is not there"


def _fault_of(stream: BinaryIO, name: str) -> str | None:
    if not name.endswith(_name("", _sha256(stream))):
        return "its content is not what its name says"
    try:
        stream.seek(0)
        if pq.read_schema(stream) in (SCHEMA, *OLDER_SCHEMAS):
            return None
    except (pa.ArrowException, OSError):
        pass
    return "it has not the columns of a ledger"


def query(sql: str, *, shards: Iterable[Path] | None = None, **parameters: Any) -> Iterator[pa.RecordBatch]:
    """The result of an SQL statement, in batches and in bounded memory, however large its files are. `shards` are its
    `$shards`; leave them out if it has none."""
    with _database() as (database, none):
        if shards is not None:
            parameters["shards"] = [none, *map(str, shards)]  # DuckDB wants at least one
        yield from database.sql(sql, params=parameters).to_arrow_reader(BATCH_ROWS)


@contextmanager
def _database() -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """A database that spills to a temporary folder, and the path of an empty shard in that folder."""
    with scratch("ledger") as folder:
        none = f"{folder}/none.parquet"
        pq.write_table(SCHEMA.empty_table(), none)
        with spilling_database(folder) as database:
            yield database, none


def is_full(file: Path) -> bool:
    """Whether a compaction leaves the shard as it is."""
    return file.stat().st_size >= PIECE_BYTES or count_rows(file) >= PIECE_ROWS


def first_of_each_key(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The first row of each key, from batches that are sorted by key."""
    last = pa.scalar(None, SCHEMA.field("key").type)
    for batch in batches:
        batch = batch.cast(SCHEMA)
        keys = pa.concat_arrays([pa.array([last.as_py()], last.type), batch["key"]])
        is_new = pc.not_equal(keys[1:], keys[:-1])
        last = keys[-1]
        yield batch.filter(is_new.fill_null(True))


def write_pieces(batches: Iterator[pa.RecordBatch], folder: Path) -> list[Path]:
    """Write batches as full shards and a remainder into `folder`, which must be empty; returns the files."""
    pieces: list[Path] = []
    for first in batches:
        pieces.append(folder / f"{len(pieces)}.parquet")
        with pq.ParquetWriter(pieces[-1], SCHEMA, compression="zstd") as writer:
            rows = 0
            for batch in chain([first], batches):
                writer.write_batch(batch)
                rows += len(batch)
                if rows >= PIECE_ROWS or pieces[-1].stat().st_size >= PIECE_BYTES:
                    break
    return pieces
