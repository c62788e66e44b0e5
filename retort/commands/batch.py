"""`retort batch`: exports requests for the completions that the ledger lacks, and imports the answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from retort.config import EndpointConfig, RecipeConfig
from retort.data.completions import BadLine
from retort.errors import ConfigError
from retort.io.parquet import write_rows
from retort.io.scratch import scratch
from retort.problems import problem_for
from retort.recipes import recipe_of
from retort.recipes.teacher_cost import Ingests
from retort.recipes.walk import llm_labelings, rows_of
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import Store
from retort.store.opening import refusals, usable_store
from retort.teachers.endpoint.batchfile import NO_SOFT_LABELS, read_answers, write_requests
from retort.teachers.endpoint.structured import wrapping
from retort.teachers.labeler import ASKED, Labeler
from retort.teachers.ledger import Ledger, LedgerWriter, entry_of
from retort.teachers.parsing import CompletionParser
from retort.teachers.rationales import constraint_of
from retort.teachers.request_builder import request_builder
from retort.teachers.requests import Completion, CompletionClient, CompletionRequest, Rejection
from retort.teachers.usage import Usage


class _Exporter:
    """A completion client that writes requests to a file and yields no completions.

    Each sample is a separate request whose id is its ledger key, since an answer contains only that id. Rows of several
    sets can have the same key; it is written once, because vendors refuse a file with the same id twice.
    """

    def __init__(self, teacher: EndpointConfig, stream: BinaryIO) -> None:
        self._teacher, self._stream = teacher, stream
        self.facts: dict[str, Any] = {}
        self._written: set[bytes] = set()

    @property
    def num_requests(self) -> int:
        return len(self._written)

    @contextmanager
    def open(self) -> Iterator[CompletionClient]:
        yield self

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        write_requests(self._teacher, self._new(requests), self._stream)
        yield from ()

    def _new(self, requests: Iterator[CompletionRequest]) -> Iterator[CompletionRequest]:
        for request in requests:
            for key in request.ledger_keys:
                if key not in self._written:
                    self._written.add(key)
                    yield replace(request, key=key, samples=(0,))


async def export_requests(config: RecipeConfig, file: Path) -> int:
    """Write the requests for the next attempt at every row that the teacher has not labeled yet. Returns their
    number."""
    with refusals():
        store = usable_store(config)
        teacher, steps, ingests = await _endpoint(config, store)
        if teacher.labels == "soft":
            raise ConfigError(NO_SOFT_LABELS)
        with file.open("wb") as stream:
            exporter, done = _Exporter(teacher, stream), set[str]()
            for step in steps:
                _export(config, store, step, ingests, exporter, done)
            return exporter.num_requests


def _export(
    config: RecipeConfig,
    store: Store,
    step: PseudolabelLlm,
    ingests: Ingests,
    exporter: _Exporter,
    done: set[str],
) -> None:
    """`done` has the keys of the row sets exported so far; the step's are added."""
    teacher, problem = step.config, problem_for(step.problem)
    with rows_of(config, store, ingests[step.labeled.key]) as labeled:
        labeler = Labeler(
            replace(request_builder(problem, teacher, labeled.gold()), attempts=1),
            CompletionParser(problem, step.metric, teacher),
            Ledger(store, step.identity),
            exporter.open,
            Usage(teacher.prices, teacher.budget),
            lambda *_: None,
        )
        with labeler:
            for ref in (step.labeled, step.pool):
                if ref.key in done:
                    continue
                with rows_of(config, store, ingests[ref.key]) as rows:
                    for _ in labeler.label(rows.path):
                        pass
                done.add(ref.key)


async def import_answers(config: RecipeConfig, file: Path) -> tuple[int, int, list[BadLine]]:
    """Returns (answers added to the ledger, answers that it already had, invalid lines)."""
    with refusals():
        store = usable_store(config)
        teacher, steps, _ = await _endpoint(config, store)
        ledger, limit = Ledger(store, steps[0].identity), teacher.max_tokens
        wrapped = wrapping(constraint_of(problem_for(steps[0].problem), teacher, ""), teacher.constraint_style)
        bad: list[BadLine] = []

        def answers() -> Iterator[Completion]:
            bad.clear()
            for line in read_answers(str(file), config.store.endpoint_url, wrapped):
                if isinstance(line, BadLine):
                    bad.append(line)
                else:
                    yield line

        lacking, total = _lacking(ledger, (answer.key for answer in answers()), limit)
        with LedgerWriter(ledger) as writer:
            for answer in answers():
                if answer.key in lacking:
                    writer.add(entry_of(answer.key, answer, limit))
        return len(lacking), total - len(lacking), bad


async def _endpoint(config: RecipeConfig, store: Store) -> tuple[EndpointConfig, list[PseudolabelLlm], Ingests]:
    """Return (teacher, the steps in which it labels, the ingest steps of their rows)."""
    steps, ingests = await llm_labelings(recipe_of(config), config, store)
    kind = recipe_of(config).teacher_facts(config)["kind"]
    if kind != "endpoint" or not isinstance(steps[0].config, EndpointConfig):
        raise ConfigError(f"teacher.kind = '{kind}': batch files are for a teacher of kind endpoint")
    return steps[0].config, steps, ingests


def _lacking(ledger: Ledger, keys: Iterator[bytes], max_tokens: int) -> tuple[set[bytes], int]:
    """Return (the keys that the ledger lacks, the number of all keys)."""
    with scratch("batch") as folder:
        file = folder / "asked.parquet"
        total = write_rows(file, ASKED, ({"position": at, "key": key} for at, key in enumerate(keys)))
        batches = ledger.missing(file, max_tokens)
        return {key for batch in batches for key in batch.column(1).to_pylist() if key is not None}, total
