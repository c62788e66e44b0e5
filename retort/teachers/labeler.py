"""Labels rows with a teacher, requesting only the completions that are missing from the ledger.

Each round makes the next attempt at every row that has no label yet and parses the completions. Attempts that an
earlier run paid for are read from the ledger at no cost. A row whose completion yields no label goes into the next
round until it has had all its attempts; then it is set aside with its raw text and the reason. A later run retries only
the rows that were set aside. A label that a constrained attempt may improve goes into the next round too, and stays if
none does.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa

from retort.errors import BudgetSpent
from retort.io.parquet import Row, count_rows, read_rows, write_rows
from retort.io.scratch import scratch
from retort.records.base import ParseFailure, Progress
from retort.teachers.ledger import Entry, Ledger, LedgerWriter, entry_of
from retort.teachers.parsing import CompletionParser, Labeled, Parsed
from retort.teachers.request_builder import Pending, RequestBuilder
from retort.teachers.requests import CompletionClient, CompletionRequest, OpenClient, Rejection
from retort.teachers.top_logprobs import STORED_TYPE, TopLogprobs
from retort.teachers.usage import Usage

_KEYS: "list[pa.Field[Any]]" = [pa.field("position", pa.int64()), pa.field("key", pa.binary(16))]
ASKED = pa.schema(_KEYS)
"""The completions that a round needs; see `RequestBuilder.keys`."""
_LABELED: "list[pa.Field[Any]]" = [
    pa.field("label", pa.string()),
    pa.field("confidence", pa.float64()),
    pa.field("probabilities", pa.list_(pa.float64())),
    pa.field("top", STORED_TYPE),
    pa.field("rationale", pa.string()),
]
_OUTCOMES = pa.schema(_LABELED)


Rows = Callable[[], Iterable[Pending]]
"""Returns a fresh iterable over the rows of a round, which are read more than once."""


class _MissingRow(NamedTuple):
    """A row with completions that the ledger does not have."""

    number: int
    """The row's index in its round, from 0."""
    pending: Pending
    keys: dict[int, bytes]
    """Ledger key of each missing sample, by the sample's number."""


@dataclass
class Labeler:
    """Labels rows with one teacher. A context manager: once started, an engine stays up until the context is left."""

    builder: RequestBuilder
    parser: CompletionParser
    ledger: Ledger
    open_client: Callable[[], OpenClient]
    usage: Usage
    progress: Progress
    settled: Mapping[bytes, ParseFailure] = field(default_factory=dict)
    """Rows that got no label in this run and are not asked about again, by the ledger key of their first completion."""
    _client: CompletionClient | None = None
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _stopped: str | None = None
    """The budget limit that was reached, as part of a sentence."""

    def __enter__(self) -> Self:
        self._folder = self._stack.enter_context(scratch("labeling"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    @property
    def facts(self) -> dict[str, object]:
        """What the client reports about itself; empty if none was started."""
        return dict(self._client.facts) if self._client else {}

    def label(self, rows: Path) -> Iterator[tuple[Row, Parsed]]:
        """Each of the `rows` (a Parquet file with example_id and text) in order, with its label or why it has none.

        Raises BudgetSpent and whatever the client raises; every completion received by then is in the ledger.
        """
        first, failed = self._folder / "first.parquet", self._settled_rows(rows)
        settled = frozenset(failed)
        again: list[Pending] = []

        def first_round() -> Iterator[Row]:
            outcomes = self._round(lambda: (row for row in pending_rows(rows) if row.position not in settled), 0)
            for position in range(count_rows(rows)):
                if position in settled:
                    yield {}
                    continue
                pending, outcome = next(outcomes)
                if isinstance(outcome, ParseFailure):
                    failed[pending.position] = outcome
                    again.append(pending)
                    yield {}
                else:
                    if self.builder.may_improve(outcome.confidence, 0):
                        again.append(replace(pending, has_label=True))
                    yield {**outcome._asdict(), "top": outcome.top and outcome.top._asdict()}

        write_rows(first, _OUTCOMES, first_round())
        late = self._later_rounds(again, failed)
        for position, (row, outcome) in enumerate(zip(read_rows(rows), read_rows(first), strict=True)):
            if position in late:
                yield row, late[position]
            elif position in failed:
                yield row, failed[position]
            else:
                yield row, Labeled(**{**outcome, "top": outcome["top"] and TopLogprobs(**outcome["top"])})

    def unanswered(self, rows: Path) -> Iterator[Row]:
        """The rows, of equal ones the first, for which `label` would request something. Requests nothing."""
        wanted, source, attempt = bytearray(count_rows(rows)), _all(rows), 0
        while True:
            failed: list[Pending] = []
            for pending, found in self._found(source, attempt):
                if any(map(self._is_wanted, found)):
                    wanted[pending.position] = 1
                    continue
                outcome, tried = self.parser.parse(pending.text, found), replace(pending, num_tries=attempt + 1)
                if isinstance(outcome, ParseFailure):
                    failed.append(tried)
                elif self.builder.may_improve(outcome.confidence, attempt):
                    failed.append(replace(tried, has_label=True))
            failed = [pending for pending in failed if self.builder.may_retry(pending)]
            if not failed:
                break
            source, attempt = failed.copy, attempt + 1
        return (
            row for row, is_wanted in zip(read_rows(rows, ["example_id", "text"]), wanted, strict=True) if is_wanted
        )

    def _found(self, rows: Rows, attempt: int) -> Iterator[tuple[Pending, list[Entry | None]]]:
        """What the ledger has of an attempt, for the first of equal rows."""
        samples, keys_file = self.builder.teacher.sampling.samples, self._folder / "asked.parquet"
        write_rows(keys_file, ASKED, self.builder.keys(rows(), attempt))
        entries, first_rows = self.ledger.join(keys_file), self.ledger.first_rows(keys_file, samples)
        for number, (pending, first) in enumerate(zip(rows(), first_rows, strict=True)):
            found = [next(entries) for _ in range(samples)]
            if first == number:
                yield pending, found

    def _is_wanted(self, entry: Entry | None) -> bool:
        """Whether a completion must be requested, see `Ledger.missing`."""
        return entry is None or (entry.finish_reason == "length" and entry.max_tokens < self._max_tokens)

    def _settled_rows(self, rows: Path) -> dict[int, ParseFailure]:
        """The settled rows by their position."""
        if not self.settled:
            return {}
        samples = self.builder.teacher.sampling.samples
        firsts = islice(self.builder.keys(pending_rows(rows), 0), 0, None, samples)
        found = ((position, self.settled.get(first["key"])) for position, first in enumerate(firsts))
        return {position: failure for position, failure in found if failure is not None}

    def _later_rounds(self, again: list[Pending], failed: dict[int, ParseFailure]) -> dict[int, Labeled]:
        """Retry rows as often as the config allows; keeps the last failure of each row without a label in `failed`."""
        labeled: dict[int, Labeled] = {}
        attempt = 1
        while again := [pending for pending in again if self.builder.may_retry(pending)]:
            still_failing: list[Pending] = []
            for pending, outcome in self._round(again.copy, attempt):
                if isinstance(outcome, Labeled):
                    labeled[pending.position] = outcome
                    if pending.has_label:  # the label that this one replaces was counted
                        self.parser.counts.subtract(("salvaged", "cut"))
                    continue
                if not pending.has_label:
                    failed[pending.position] = outcome
                still_failing.append(pending)
            again, attempt = still_failing, attempt + 1
        return labeled

    def _round(self, rows: Rows, attempt: int) -> Iterator[tuple[Pending, Parsed]]:
        """The outcome of attempt number `attempt` for every row, from the ledger or from a new request."""
        samples, keys_file = self.builder.teacher.sampling.samples, self._folder / "asked.parquet"
        total = write_rows(keys_file, ASKED, self.builder.keys(rows(), attempt))
        was_requested = bytearray(total // samples)
        rejected = self._request_missing(rows, keys_file, attempt, was_requested)
        entries = self.ledger.join(keys_file)
        # Equal rows share one request, and its outcome.
        first_rows = self.ledger.first_rows(keys_file, samples) if any(was_requested) else count()
        for pending, first in zip(rows(), first_rows, strict=False):
            found = [next(entries) for _ in range(samples)]
            tried = replace(
                pending,
                num_tries=pending.num_tries + 1,
                was_requested=pending.was_requested or bool(was_requested[first]),
                is_rejected=first in rejected,
            )
            if rejection := rejected.get(first):
                yield tried, ParseFailure(rejection.reason, rejection.detail, rejection.raw)
            else:
                yield tried, self.parser.parse(pending.text, found)

    def _request_missing(
        self, rows: Rows, keys_file: Path, attempt: int, was_requested: bytearray
    ) -> dict[int, Rejection]:
        """Request the completions of a round that the ledger does not have, and add them to it. Returns the rejections
        by row index and marks in `was_requested` all rows that were requested. Starts no engine if nothing is missing.
        """
        missing_rows = self._missing_rows(rows, keys_file)
        first = next(missing_rows, None)
        if first is None:
            return {}
        in_flight: dict[bytes, _MissingRow] = {}
        rejected: dict[int, Rejection] = {}

        def new_requests() -> Iterator[CompletionRequest]:
            for missing_row in chain([first], missing_rows):
                self._stopped = self.usage.exhausted()
                if self._stopped:
                    return
                request = self.builder.request(missing_row.pending, missing_row.keys, attempt)
                in_flight[request.key] = missing_row
                was_requested[missing_row.number] = 1
                self.usage.record_request(request)
                yield request

        with LedgerWriter(self.ledger) as writer:
            for outcome in self._started_client().ask(new_requests()):
                missing_row = in_flight[outcome.key]
                if isinstance(outcome, Rejection):
                    self.usage.record_outcome(outcome, len(missing_row.keys))
                    rejected[missing_row.number] = outcome
                    missing_row.keys.clear()
                else:
                    self.usage.record_outcome(outcome)
                    writer.add(entry_of(missing_row.keys.pop(outcome.sample), outcome, self._max_tokens))
                if not missing_row.keys:
                    del in_flight[outcome.key]
                self._report_progress(len(was_requested))
        if self._stopped:
            raise BudgetSpent(
                f"stopped at {self._stopped} after {self.usage.summary()}; what came is kept, and the next run goes on"
            )
        return rejected

    def _missing_rows(self, rows: Rows, keys_file: Path) -> Iterator[_MissingRow]:
        """The rows with missing completions, in the order of `rows`."""
        samples = self.builder.teacher.sampling.samples
        missing_keys = (
            (position, key)
            for batch in self.ledger.missing(keys_file, self._max_tokens)
            for position, key in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        walk = enumerate(rows())
        for number, found in groupby(missing_keys, lambda completion: completion[0] // samples):
            keys = {position % samples: key for position, key in found}
            yield _MissingRow(number, next(row for at, row in walk if at == number), keys)

    @property
    def _max_tokens(self) -> int:
        return self.builder.teacher.max_tokens

    def _started_client(self) -> CompletionClient:
        if self._client is None:
            started = time.monotonic()
            self.progress(0, 1, "starting the teacher")
            self._client = self._stack.enter_context(self.open_client())
            own = float(self._client.facts.get("start_seconds", 0.0))  # an engine may have been started ahead
            self.usage.start_seconds = max(own, time.monotonic() - started)
            self.usage.num_gpus = int(self._client.facts.get("num_gpus", 0))
        return self._client

    def _report_progress(self, total: int) -> None:
        seconds = max(self.usage.seconds, 1e-9)
        self.progress(
            min(self.usage.completions, total),
            total,
            f"{self.usage.completions / seconds:.0f} completions/s",
        )


def _all(rows: Path) -> Rows:
    return lambda: pending_rows(rows)


def pending_rows(rows: Path) -> Iterator[Pending]:
    """The rows of a Parquet file with example_id and text, none of them attempted yet."""
    for position, row in enumerate(read_rows(rows, ["example_id", "text"])):
        yield Pending(position, row["example_id"], row["text"])
