"""From rows to labels, asking only for what the ledger lacks.

A round asks every row that has no label yet for its next try and parses what comes; tries that an earlier run paid for
are found in the ledger and cost nothing. A row whose completion gives no label goes into the next round, until it has
had `1 + ask_again.times` tries; then it is set aside with its raw text and the reason. A run that comes later asks
again only for what was set aside.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa

from retort.errors import BudgetSpent
from retort.io.parquet import Row, read_rows, write_rows
from retort.records.base import ParseFailure
from retort.teachers.ledger import Ledger, LedgerWriter, entry_of
from retort.teachers.parsing import CompletionParser, Labeled, Outcome
from retort.teachers.request_builder import Pending, RequestBuilder
from retort.teachers.requests import CompletionClient, CompletionRequest, OpenClient, Rejection
from retort.teachers.top_logprobs import KEPT, TopLogprobs
from retort.teachers.usage import Usage

Progress = Callable[[int, int, str], None]

_KEYS: "list[pa.Field[Any]]" = [pa.field("position", pa.int64()), pa.field("key", pa.binary(16))]
ASKED = pa.schema(_KEYS)
"""The completions that a round needs, see `RequestBuilder.keys`."""
_LABELLED: "list[pa.Field[Any]]" = [
    pa.field("label", pa.string()),
    pa.field("confidence", pa.float64()),
    pa.field("probabilities", pa.list_(pa.float64())),
    pa.field("top", KEPT),
]
_OUTCOMES = pa.schema(_LABELLED)


Rows = Callable[[], Iterable[Pending]]
"""The rows of a round, as often as they are walked through."""


class _Lacking(NamedTuple):
    """What the ledger lacks of one row."""

    number: int
    """Of the row in its round, from 0."""
    pending: Pending
    keys: dict[int, bytes]
    """Of each sample wanted."""


@dataclass
class Labeler:
    """One teacher at work; a context, inside which an engine, once started, stays up."""

    questions: RequestBuilder
    reader: CompletionParser
    ledger: Ledger
    open_client: Callable[[], OpenClient]
    spending: Usage
    progress: Progress
    _asker: CompletionClient | None = None
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _stopped: str | None = None
    """The limit of the budget that was reached."""

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-labelling-")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    @property
    def facts(self) -> dict[str, object]:
        """What the engine says of itself, if one was started."""
        return dict(self._asker.facts) if self._asker else {}

    def label(self, rows: Path) -> Iterator[tuple[Row, Outcome]]:
        """Each of the `rows` (a Parquet file with example_id and text) in its order, with its label or why it has none.

        Raises BudgetSpent, and what an asker raises; every completion that came is in the ledger by then.
        """
        first, failed = self._folder / "first.parquet", dict[int, ParseFailure]()
        again: list[Pending] = []

        def first_round() -> Iterator[Row]:
            for pending, outcome in self._round(lambda: pending_rows(rows), 0):
                if isinstance(outcome, ParseFailure):
                    failed[pending.position] = outcome
                    again.append(pending)
                    yield {}
                else:
                    yield {**outcome._asdict(), "top": outcome.top and outcome.top._asdict()}

        write_rows(first, _OUTCOMES, first_round())
        late = self._later_rounds(again, failed)
        for position, (row, outcome) in enumerate(zip(read_rows(rows), read_rows(first), strict=True)):
            if position in failed:
                yield row, late.get(position, failed[position])
            else:
                yield row, Labeled(**{**outcome, "top": outcome["top"] and TopLogprobs(**outcome["top"])})

    def _later_rounds(self, again: list[Pending], failed: dict[int, ParseFailure]) -> dict[int, Labeled]:
        """Ask again, as often as the config says; keeps the last failure of each row in `failed`."""
        labelled: dict[int, Labeled] = {}
        attempt = 1
        while again := [pending for pending in again if self.questions.may_ask_again(pending)]:
            still: list[Pending] = []
            for pending, outcome in self._round(again.copy, attempt):
                if isinstance(outcome, Labeled):
                    labelled[pending.position] = outcome
                else:
                    failed[pending.position] = outcome
                    still.append(pending)
            again, attempt = still, attempt + 1
        return labelled

    def _round(self, rows: Rows, attempt: int) -> Iterator[tuple[Pending, Outcome]]:
        """Every row's try number `attempt`: the ledger's, else asked for now."""
        samples, asked = self.questions.teacher.sampling.samples, self._folder / "asked.parquet"
        total = write_rows(asked, ASKED, self.questions.keys(rows(), attempt))
        was_asked = bytearray(total // samples)
        refused = self._ask(rows, asked, attempt, was_asked)
        entries = self.ledger.join(asked)
        for index, pending in enumerate(rows()):
            found = [next(entries) for _ in range(samples)]
            tried = replace(
                pending,
                num_tries=pending.num_tries + 1,
                was_asked=pending.was_asked or bool(was_asked[index]),
                is_refused=index in refused,
            )
            if index in refused:
                refusal = refused[index]
                yield tried, ParseFailure(refusal.reason, refusal.detail, refusal.raw)
            else:
                yield tried, self.reader.read(pending.text, found)

    def _ask(self, rows: Rows, asked: Path, attempt: int, was_asked: bytearray) -> dict[int, Rejection]:
        """Bring the ledger what it lacks of a round. Returns the rows that were refused, by index, and marks in
        `was_asked` all that were asked. Starts no engine where nothing is missing."""
        wanted = self._lacking(rows, asked)
        first = next(wanted, None)
        if first is None:
            return {}
        under_way: dict[bytes, _Lacking] = {}
        refused: dict[int, Rejection] = {}

        def ask_for() -> Iterator[CompletionRequest]:
            for lacking in chain([first], wanted):
                self._stopped = self.spending.exhausted()
                if self._stopped:
                    return
                question = self.questions.question(lacking.pending, lacking.keys, attempt)
                under_way[question.key] = lacking
                was_asked[lacking.number] = 1
                self.spending.asked(question)
                yield question

        with LedgerWriter(self.ledger) as writer:
            for answer in self._started().ask(ask_for()):
                lacking = under_way[answer.key]
                if isinstance(answer, Rejection):
                    self.spending.came(answer, len(lacking.keys))
                    refused[lacking.number] = answer
                    lacking.keys.clear()
                else:
                    self.spending.came(answer)
                    writer.add(entry_of(lacking.keys.pop(answer.sample), answer, self._max_tokens))
                if not lacking.keys:
                    del under_way[answer.key]
                self._tell(len(was_asked))
        if self._stopped:
            raise BudgetSpent(
                f"stopped at {self._stopped} after {self.spending.told()}; what came is kept, and the next run goes on"
            )
        return refused

    def _lacking(self, rows: Rows, asked: Path) -> Iterator[_Lacking]:
        """In the order of the rows."""
        samples = self.questions.teacher.sampling.samples
        missing = (
            (position, key)
            for batch in self.ledger.missing(asked, self._max_tokens)
            for position, key in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        walk = enumerate(rows())
        for number, found in groupby(missing, lambda completion: completion[0] // samples):
            keys = {position % samples: key for position, key in found}
            yield _Lacking(number, next(row for at, row in walk if at == number), keys)

    @property
    def _max_tokens(self) -> int:
        return self.questions.teacher.sampling.max_tokens

    def _started(self) -> CompletionClient:
        if self._asker is None:
            started = time.monotonic()
            self.progress(0, 1, "starting the teacher")
            self._asker = self._stack.enter_context(self.open_client())
            self.spending.start_seconds = time.monotonic() - started
            self.spending.num_gpus = int(self._asker.facts.get("num_gpus", 0))
        return self._asker

    def _tell(self, total: int) -> None:
        seconds = max(self.spending.seconds, 1e-9)
        self.progress(
            min(self.spending.completions, total),
            total,
            f"{self.spending.completions / seconds:.0f} completions/s",
        )


def pending_rows(rows: Path) -> Iterator[Pending]:
    for position, row in enumerate(read_rows(rows, ["example_id", "text"])):
        yield Pending(position, row["example_id"], row["text"])
