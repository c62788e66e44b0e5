"""The ledger: every completion ever paid for, looked up by the request it answers.

Each teacher has one folder in the store, `ledger/<digest of its identity>/`, whose shards are only ever added, so two
runs may add and read at once. Lookups run in DuckDB, in bounded memory, and read only the columns they need.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import duckdb
import pyarrow as pa

from retort.data.lines import storable
from retort.errors import StoreUnavailable
from retort.io.scratch import scratch
from retort.records.base import digest
from retort.store import Store
from retort.teachers.requests import Completion
from retort.teachers.shards import SCHEMA, Shards, first_of_each_key, is_full, query, write_pieces
from retort.teachers.top_logprobs import TopLogprobs

FLUSH_SECONDS = 4.0
SHARD_ENTRIES = 5000
MOST_SHARDS = 4
"""A writer holds at most the entries of so many shards in memory."""
OUTAGE_SECONDS = 180.0
"""So long, writes may fail before a writer gives up."""
MOST_TOKENS = 2**31 - 1

BEST_FIRST = "finish_reason IS NOT DISTINCT FROM 'length', max_tokens DESC, asked_at, text"
SHARDS = "read_parquet($shards, union_by_name = true)"
"""By name, because older shards lack the last columns."""
MISSING = f"""
    SELECT min(position) AS position, key FROM read_parquet($asked) AS asked WHERE NOT EXISTS (
        FROM {SHARDS} AS entry WHERE entry.key = asked.key
        AND (finish_reason IS DISTINCT FROM 'length' OR max_tokens >= $max_tokens)
    ) GROUP BY key ORDER BY position
"""
JOIN = f"""
    SELECT position, entry.* FROM read_parquet($asked) AS asked
    LEFT JOIN {SHARDS} AS entry ON entry.key = asked.key ORDER BY position, {BEST_FIRST}
"""
FIRST = """
    SELECT (min(position) OVER (PARTITION BY key) // $samples)::BIGINT AS first FROM read_parquet($asked)
    WHERE position % $samples = 0 ORDER BY position
"""
MERGE = f"FROM {SHARDS} ORDER BY key, {BEST_FIRST}"

T = TypeVar("T")


class Entry(NamedTuple):
    """One completion as stored."""

    key: bytes
    """16 bytes, from `ledger_key`."""
    text: str
    finish_reason: str | None
    max_tokens: int
    """The token limit of the request."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    scores: tuple[float, ...]
    """Natural logarithms of the verbalizers' probabilities, or ()."""
    asked_at: float
    """When the completion was received, in Unix seconds."""
    top: TopLogprobs | None = None
    """Top log-probabilities, if they were requested."""
    logprob: float | None = None
    """Natural logarithm of the completion's probability, see `Completion`."""


def entry_of(key: bytes, completion: Completion, max_tokens: int) -> Entry:
    """The entry for a completion that was received just now."""
    return Entry(
        key=key,
        text=completion.text,
        finish_reason=completion.finish_reason and storable(completion.finish_reason),
        max_tokens=max_tokens,
        prompt_tokens=_count(completion.prompt_tokens),
        cached_tokens=_count(completion.cached_tokens),
        completion_tokens=_count(completion.completion_tokens),
        scores=completion.scores,
        asked_at=time.time(),
        top=completion.top,
        logprob=completion.logprob,
    )


def ledger_key(shared_digest: bytes, item: str, constraint: str, attempt: int, sample: int) -> bytes:
    """A 16-byte key that identifies one completion of one row.

    `shared_digest` (at most 64 bytes) identifies what many rows share: the prompt prefix and the sampling parameters.
    """
    text = f"{attempt} {sample} {len(constraint)} {constraint}{item}"
    return blake2b(text.encode(), digest_size=16, key=shared_digest).digest()


class Ledger:
    """The completions of one teacher.

    `teacher` holds everything its completions depend on besides the key, as JSON values: kind, model, revision, engine
    mode; not `max_tokens`, batch sizes or GPUs. If several entries share a key, the best one counts: first one that
    was not truncated (`finish_reason` is not `length`), then the one with the largest `max_tokens`, then the earliest.
    Methods raise StoreUnavailable. A damaged shard is skipped, listed in `damaged`, and never deleted.
    """

    def __init__(self, store: Store, teacher: Mapping[str, Any]) -> None:
        self.folder = f"ledger/{digest(teacher)[:16]}"
        """The folder, relative to the store's root."""
        self._store = store
        self._teacher = teacher
        self._shards = Shards(store, self.folder)
        self._introduced = False

    @property
    def damaged(self) -> list[str]:
        """One sentence for each shard that the last lookup or compaction skipped."""
        return self._shards.damaged

    def files(self) -> list[str]:
        """Names of all shards, including damaged ones, sorted by time. Does not read them."""
        return self._shards.names()

    def add(self, entries: Sequence[Entry]) -> None:
        """Store the entries in one shard, which is durable on return. Many small shards are slow: see LedgerWriter."""
        if not entries:
            return
        self._introduce()
        self._shards.write(_table(entries))

    def set_aside(self, entries: Sequence[Entry]) -> Path:
        """Store the entries on this machine's disk, since the storage fails; returns the folder. The next lookup or
        writer on this machine takes them in. Raises StoreUnavailable if the disk fails too."""
        return self._shards.set_aside(_table(entries))

    def take_in(self) -> None:
        """Add what processes of this machine have set aside."""
        for name in self._shards.aside():
            self._introduce()
            self._shards.take_in(name)

    def missing(self, asked: Path, max_tokens: int) -> Iterator[pa.RecordBatch]:
        """What must be requested: keys without an entry, or only with entries truncated below `max_tokens`.

        `asked` is a Parquet file with position (int64) and key (binary, 16 bytes). The batches have the same columns
        and are ordered by position; of equal keys only the first is returned, since equal rows are paid for once. The
        texts are not read.
        """
        return self._find(MISSING, asked=str(asked), max_tokens=max_tokens)

    def first_rows(self, asked: Path, samples: int) -> Iterator[int]:
        """For each row of `asked` (see `missing`; `samples` positions each), in order: the first row with the same
        keys, which is the one that is requested. Rows are counted from 0."""
        for batch in query(FIRST, asked=str(asked), samples=samples):
            yield from map(int, batch.column(0).to_numpy())

    def join(self, asked: Path) -> Iterator[Entry | None]:
        """The best entry for each row of `asked` (see `missing`; positions must be unique), ordered by position.

        Truncated entries are included, whatever their limit; None where there is no entry.
        """
        last = None
        for batch in self._find(JOIN, asked=str(asked)):
            positions, keys, *others = (column.to_pylist() for column in batch.columns)
            for position, key, *found, scores, asked_at, top, logprob in zip(positions, keys, *others, strict=True):
                if position != last and key is not None:
                    listed = top and TopLogprobs(**top)
                    yield Entry._make((key, *found, tuple(scores), asked_at, listed, logprob))
                elif position != last:
                    yield None
                last = position

    def compact(self) -> int:
        """Merge all shards that are not full into full ones and a remainder; returns how many shards were removed.

        Only the best entry of each key is kept. Old shards are removed once the new ones are durable, so a crash in
        between leaves harmless duplicates, and other processes may read, add and compact meanwhile.
        """
        return self._while_shards_change(self._compact)

    def _compact(self, shards: dict[str, Path]) -> int:
        small = {name: file for name, file in shards.items() if not is_full(file)}
        if len(small) < 2:
            return 0
        newest = max(small)
        with scratch("ledger") as drafts:
            pieces = write_pieces(first_of_each_key(query(MERGE, shards=small.values())), drafts)
            merged = {self._shards.upload(piece, newest) for piece in pieces}
        # A piece may already exist: two compactions of the same shards produce identical files.
        removed = small.keys() - merged
        self._shards.remove(removed)
        return len(removed)

    def _find(self, sql: str, **parameters: Any) -> Iterator[pa.RecordBatch]:
        def start(shards: dict[str, Path]) -> Iterator[pa.RecordBatch]:
            batches = query(sql, shards=shards.values(), **parameters)
            first = list(islice(batches, 1))
            return chain(first, batches)

        self.take_in()
        yield from self._while_shards_change(start)  # sorted results: all shards are read before the first batch

    def _while_shards_change(self, read: Callable[[dict[str, Path]], T]) -> T:
        """The result of `read`, which is called again with the current shards if they vanish or break meanwhile.

        Also with the same ones, once: what vanished from the cache was downloaded again.
        """
        failed = None
        while True:
            shards = self._shards.intact()
            try:
                return read(shards)
            except (duckdb.Error, pa.ArrowException, FileNotFoundError):
                if shards == failed:
                    raise
                self._shards.forget()
                failed = shards

    def _introduce(self) -> None:
        """Write the teacher's identity beside its shards, so that people can see where the completions came from."""
        path = f"{self.folder}/teacher.json"
        if not self._introduced and "teacher.json" not in self._store.place.list(self.folder):
            self._store.place.write(path, json.dumps(self._teacher, ensure_ascii=False, indent=1).encode())
        self._introduced = True


def _table(entries: Sequence[Entry]) -> pa.Table:
    columns = dict(zip(Entry._fields, zip(*entries, strict=True), strict=True))
    columns["text"] = tuple(map(storable, columns["text"]))
    columns["top"] = tuple(top and top._asdict() for top in columns["top"])
    return pa.table(columns, schema=SCHEMA)


class LedgerWriter:
    """A context manager that takes completions one by one and makes them durable in a background thread.

    A shard is written `delay_seconds` after its oldest entry arrived, or once there are `shard_entries`; leaving the
    context writes the rest, even after an exception. With the defaults, and a store that writes a shard within a
    second, a kill at any moment loses at most the completions of the last 5 s.

    While the storage fails, what comes is set aside on this machine's disk (or stays in memory where that fails too),
    and the storage is tried again after each `delay_seconds`. Only after OUTAGE_SECONDS of failures StoreUnavailable is
    raised; what was set aside then waits for the next lookup on this machine.
    """

    def __init__(
        self, ledger: Ledger, delay_seconds: float = FLUSH_SECONDS, shard_entries: int = SHARD_ENTRIES
    ) -> None:
        self._ledger = ledger
        self._delay_seconds = delay_seconds
        self._shard_entries = shard_entries
        self._changed = threading.Condition()
        self._waiting: list[Entry] = []
        self._writing: list[Entry] = []
        self._aside: Path | None = None
        """The folder of what was set aside in this outage, if anything was."""
        self._failing_since: float | None = None
        self._due = math.inf
        self._failure: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._write_when_due, name="ledger-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Waits for an outage to end, see the class; not after a KeyboardInterrupt or a cancellation, in whose place
        nothing is raised."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if error is None or isinstance(error, Exception):
            while not self._write(OUTAGE_SECONDS):
                time.sleep(self._delay_seconds)
            return
        try:
            self._write(0.0)
        except Exception as failure:
            error.add_note(str(failure))

    def add(self, entry: Entry) -> None:
        """Always accepts the entry, then raises the error of any write that failed since the last call (of the storage,
        only if it has failed for OUTAGE_SECONDS). The entries are tried again after the delay and on exit.

        Waits while the entries of MOST_SHARDS shards are in memory.
        """
        with self._changed:
            self._waiting.append(entry)
            if len(self._waiting) == self._shard_entries:
                self._set_due(0.0)
            elif self._due == math.inf:
                self._set_due(self._delay_seconds)
            self._changed.wait_for(lambda: self._failure or self._num_held() < MOST_SHARDS * self._shard_entries)
            failure, self._failure = self._failure, None
        if failure:
            raise failure

    def _num_held(self) -> int:
        return len(self._waiting) + len(self._writing)

    def _set_due(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        self._changed.notify_all()

    def _write_when_due(self) -> None:
        while self._wait():
            try:
                is_done, failure = self._write(OUTAGE_SECONDS), None
            except Exception as error:  # whatever it is, it is raised in the caller's thread
                is_done, failure = False, error
            with self._changed:
                self._failure = failure
                if not is_done:
                    self._set_due(self._delay_seconds)

    def _wait(self) -> bool:
        """Wait until a shard is due; False if the writer is closing."""
        with self._changed:
            while not self._closing and (seconds := self._due - time.monotonic()) > 0:
                self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
            return not self._closing

    def _write(self, patience_seconds: float) -> bool:
        """Write what waits as one shard, or set it aside; returns whether everything is in the ledger now. Raises
        StoreUnavailable if the storage has failed for `patience_seconds`."""
        with self._changed:
            self._writing, self._waiting, self._due = self._waiting, [], math.inf
        try:
            self._ledger.take_in()
            self._ledger.add(self._writing)
            self._writing, self._failing_since, self._aside = [], None, None
            return True
        except StoreUnavailable as failure:
            self._set_aside()
            now = time.monotonic()
            self._failing_since = now if self._failing_since is None else self._failing_since
            if now - self._failing_since >= patience_seconds:
                raise StoreUnavailable(self._told(failure)) from failure
            return False
        finally:
            with self._changed:
                self._waiting[:0], self._writing = self._writing, []
                self._changed.notify_all()

    def _set_aside(self) -> None:
        if self._writing:
            with suppress(StoreUnavailable, OSError):  # the disk fails too: they stay in memory
                self._aside = self._ledger.set_aside(self._writing)
                self._writing = []

    def _told(self, failure: StoreUnavailable) -> str:
        kept = f"completions wait in {self._aside} until the next run on this machine adds them to the ledger"
        lost = f"{len(self._writing)} completions could not be kept in the ledger"
        told = " and ".join([kept] * bool(self._aside) + [lost] * bool(self._writing))
        return f"{told}: {failure}" if told else str(failure)


def _count(tokens: int) -> int:
    """The count as the shards' columns can hold it. Servers report what they like, and one odd count must not fail the
    whole shard."""
    return min(max(int(tokens), 0), MOST_TOKENS)
