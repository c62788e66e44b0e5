"""What `retort batch` does: the questions that the ledger lacks answers to go out as a file, answers come in as one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from retort.config import EndpointConfig, MckdConfig
from retort.data.completions import BadLine
from retort.errors import ConfigError
from retort.io.parquet import write_rows
from retort.problems import problem_for
from retort.recipes.mckd.checks import refusals, resolve, usable_store
from retort.steps.ingest import ROWS
from retort.steps.teacher_cost import questions_of, rows_of
from retort.store import Store
from retort.teachers.endpoint.batchfile import read_answers, write_requests
from retort.teachers.identity import teacher_identity
from retort.teachers.labeler import ASKED, Labeler
from retort.teachers.ledger import Ledger, LedgerWriter, entry_of
from retort.teachers.parsing import CompletionParser
from retort.teachers.requests import Completion, CompletionClient, CompletionRequest, Rejection
from retort.teachers.usage import Usage


class _Exporter:
    """An asker that writes questions down and answers none. Each sample goes out by itself, under the key that the
    ledger will keep it under, which is all that an answer brings back."""

    def __init__(self, teacher: EndpointConfig, stream: BinaryIO) -> None:
        self._teacher, self._stream = teacher, stream
        self.facts: dict[str, Any] = {}
        self.num_requests = 0

    @contextmanager
    def open(self) -> Iterator[CompletionClient]:
        yield self

    def ask(self, questions: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        single = (replace(question, key=key, samples=(0,)) for question in questions for key in question.ledger_keys)
        self.num_requests += write_requests(self._teacher, single, self._stream)
        yield from ()


def export_requests(config: MckdConfig, file: Path) -> int:
    """The next try of every row that has no label yet, of the pool and of the labelled set. Returns how many."""
    with refusals():
        store, config = usable_store(config), resolve(config)
        teacher = _endpoint(config)
        with (
            rows_of(config, store, "unlabeled") as pool,
            rows_of(config, store, "labeled") as labelled,
            file.open("wb") as stream,
        ):
            exporter = _Exporter(teacher, stream)
            once = teacher.model_copy(update={"ask_again": teacher.ask_again.model_copy(update={"times": 0})})
            labelling = Labeler(
                questions=questions_of(config, once, labelled),
                reader=CompletionParser(problem_for(config.problem), config.metrics[0], once),
                ledger=_ledger(config, store, teacher),
                open_client=exporter.open,
                spending=Usage(teacher.prices, teacher.budget),
                progress=lambda *_: None,
            )
            with labelling:
                for rows in (labelled / ROWS, pool / ROWS):
                    for _ in labelling.label(rows):
                        pass
            return exporter.num_requests


def import_answers(config: MckdConfig, file: Path) -> tuple[int, int, list[BadLine]]:
    """(answers taken into the ledger, answers that it had, lines that are none)."""
    with refusals():
        store, config = usable_store(config), resolve(config)
        teacher = _endpoint(config)
        ledger, limit = _ledger(config, store, teacher), teacher.sampling.max_tokens
        bad: list[BadLine] = []

        def answers() -> Iterator[Completion]:
            bad.clear()
            for line in read_answers(str(file), config.store.endpoint_url, teacher.constraint_style):
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


def _lacking(ledger: Ledger, keys: Iterator[bytes], max_tokens: int) -> tuple[set[bytes], int]:
    """The keys that the ledger lacks, and how many were given."""
    with tempfile.TemporaryDirectory(prefix="retort-batch-") as folder:
        asked = Path(folder) / "asked.parquet"
        total = write_rows(asked, ASKED, ({"position": at, "key": key} for at, key in enumerate(keys)))
        batches = ledger.missing(asked, max_tokens)
        return {key for batch in batches for key in batch.column(1).to_pylist() if key is not None}, total


def _endpoint(config: MckdConfig) -> EndpointConfig:
    if not isinstance(config.teacher, EndpointConfig):
        raise ConfigError(f"teacher.kind = '{config.teacher.kind}': batch files are for a teacher of kind endpoint")
    return config.teacher


def _ledger(config: MckdConfig, store: Store, teacher: EndpointConfig) -> Ledger:
    return Ledger(store, teacher_identity(teacher, config.store.server))
