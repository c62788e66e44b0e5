"""`ingest`: turns a data source into an artifact, with the gold labels in a separate file."""

import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from retort.artifacts.examples import (
    GOLD_ROWS,
    GROUP_ROWS,
    RATIONALE_ROWS,
    ROWS,
    SET_ASIDE,
    SET_ASIDE_ROWS,
    Examples,
    summary_of,
)
from retort.config import ColumnsConfig, Problem, Source
from retort.config.soft_label import AnswerColumnsConfig
from retort.data import read_examples
from retort.data.bad_rows import BadRow
from retort.data.reading import Folds, read_pool
from retort.errors import DataError
from retort.io.parquet import BAD_ROWS, EXAMPLES, GOLD, GROUPS, RATIONALES, Row, RowWriter, read_rows, write_rows
from retort.io.scratch import scratch
from retort.problems import problem_for
from retort.records.base import Example, Record, digest
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

_FEW = 1024
_OPTIONAL: "list[pa.Field[Any]]" = [pa.field(name, pa.string()) for name in ("label", "group", "rationale")]
_DRAWN = pa.schema([*EXAMPLES, *_OPTIONAL])
IN_LABELED = "in labeled set"
"""A count: rows of the pool that were left out."""


class FoldRows(Record):
    """Selects some of a file's rows by fold."""

    column: str
    """The column with each row's fold number."""
    numbers: list[int]
    inside: bool
    """Whether to take the rows with these numbers, or all others."""

    @property
    def rows(self) -> Folds:
        return Folds(self.column, frozenset(self.numbers), self.inside)


class Ingest(Step):
    """Read a data source, check every row, and store it with its gold labels in a separate file.

    A row of the pool that cannot be used is set aside; in any other source it is an error. A row of the pool that the
    labeled set has too is left out: its label is known, and a teacher that was shown it repeats it, so that students
    which learned it could not be judged by it.
    """

    kind = "ingest"
    version = 2
    artifact = Examples

    problem: Problem
    columns: dict[str, Any]
    """A `ColumnsConfig`, or an `AnswerColumnsConfig` if `text` is a list."""
    content: str
    """The source's fingerprint, see `retort.data.fingerprint`."""
    gold: Literal["optional", "required"]
    limit: int | None
    """Use only this many rows, the first in the order of hashed ids."""
    folds: Annotated[FoldRows | None, Field(exclude_if=lambda folds: folds is None)] = None
    without: Annotated[str | None, Field(exclude_if=lambda content: content is None)] = None
    """The fingerprint of `labeled`."""
    labeled: Runtime[Source | None] = None
    """The labeled set, whose texts the pool is not to have."""
    source: Runtime[Source]
    endpoint_url: Runtime[str | None]

    @property
    def fingerprint_version(self) -> int:
        """Since version 2, JSON labels are equal if their content is, and objects keep their letters as they are."""
        return self.version if self.problem.kind == "text" else 1

    def run(self, context: StepContext) -> StepOutput:
        known = self._known_texts()
        left_out = num_gold = 0
        reasons: Counter[str] = Counter()

        def usable() -> Iterator[Example]:
            nonlocal left_out
            for example in self._read():
                if isinstance(example, BadRow):
                    reasons[example.reason] += 1
                    aside.write(dataclasses.asdict(example))
                elif _plain(example.text) in known:
                    left_out += 1
                else:
                    yield example

        def rows() -> Iterator[Row]:
            nonlocal num_gold
            for example in drawn(usable(), self.limit) if self.limit else usable():
                row = {"example_id": example.example_id, "text": example.text}
                if example.label is not None:
                    num_gold += 1
                    golds.write({**row, "label": example.label})
                if example.group is not None:
                    groups.write({"example_id": example.example_id, "group": example.group})
                if example.rationale is not None:
                    rationales.write({"example_id": example.example_id, "rationale": example.rationale})
                yield row

        with (
            RowWriter(context.folder / SET_ASIDE_ROWS, BAD_ROWS) as aside,
            RowWriter(context.folder / GOLD_ROWS, GOLD) as golds,
            RowWriter(context.folder / GROUP_ROWS, GROUPS) as groups,
            RowWriter(context.folder / RATIONALE_ROWS, RATIONALES) as rationales,
        ):
            count = write_rows(context.folder / ROWS, EXAMPLES, rows())
        if not count:
            raise DataError(self._no_rows(context.folder, reasons, left_out))
        details = {SET_ASIDE: dict(reasons)} if reasons else {}
        counts = {"gold": num_gold, **({IN_LABELED: left_out} if left_out else {})}
        return StepOutput(rows=count, counts=counts, details=details)

    @property
    def is_pool(self) -> bool:
        """Whether bad rows are set aside. Folds of the training file are not: a bad row says no fold."""
        return self.gold == "optional" and self.folds is None

    def _read(self) -> Iterator[Example | BadRow]:
        several = isinstance(self.columns["text"], list)
        columns = (AnswerColumnsConfig if several else ColumnsConfig).model_validate(self.columns)
        problem = problem_for(self.problem)
        if self.is_pool:
            return read_pool(self.source, columns, problem, self.endpoint_url)
        return read_examples(
            self.source,
            columns,
            problem,
            gold=self.gold,
            endpoint_url=self.endpoint_url,
            folds=None if self.folds is None else self.folds.rows,
        )

    def _known_texts(self) -> frozenset[str]:
        if self.labeled is None:
            return frozenset()
        columns, problem = ColumnsConfig.model_validate(self.columns), problem_for(self.problem)
        rows = read_examples(self.labeled, columns, problem, gold="required", endpoint_url=self.endpoint_url)
        return frozenset(_plain(row.text) for row in rows)

    def _no_rows(self, folder: Path, reasons: Mapping[str, int], left_out: int) -> str:
        if left_out:
            return (
                f"{self._place()}: all {left_out} rows that can be used are in data.labeled too, so their labels are "
                "known; at least one other is needed"
            )
        if not reasons:
            return f"{self._place()}: holds no rows; at least one is needed"
        aside = summary_of(read_rows(folder / SET_ASIDE_ROWS), 0, reasons)
        return f"{self._place()}: {aside.text}; {aside.beginning}"

    def _place(self) -> str:
        source = self.source if isinstance(self.source, str) else json.dumps(self.source.model_dump(mode="json"))
        return f"data.{self.name.partition('/')[2]} = {source}"


def drawn(examples: Iterable[Example], limit: int) -> Iterator[Example]:
    """The first `limit` examples in the order of hashed ids: a random choice that is stable as the pool grows, as it
    changes only by new rows with a smaller hash. They keep their order. Takes some 16 bytes a row of the limit, and
    goes through the examples once: those that may be among the first wait in a file."""
    with scratch("drawn") as folder:
        file, lowest = folder / "rows.parquet", _Lowest(limit)
        with RowWriter(file, _DRAWN) as waiting:
            for example in examples:
                if lowest.add(_hash(example.example_id)):
                    waiting.write(dataclasses.asdict(example))
        last = lowest.last
        for row in read_rows(file) if file.exists() else ():
            if _hash(row["example_id"]) <= last:
                yield Example(**row)


class _Lowest:
    """The lowest `limit` of many numbers below 2^64."""

    def __init__(self, limit: int) -> None:
        self._limit, self._found = limit, array("Q")
        self._most = 2**64 - 1

    def add(self, number: int) -> bool:
        """Whether it may be one of them."""
        if number > self._most:
            return False
        self._found.append(number)
        if len(self._found) >= 2 * self._limit + _FEW:
            self._most = self.last
        return True

    @property
    def last(self) -> int:
        """The highest of them; 2^64 - 1 if there are not more than `limit`."""
        if len(self._found) > self._limit:
            first = np.partition(np.frombuffer(self._found, dtype=np.uint64), self._limit - 1)[: self._limit]
            self._found = array("Q", first.tobytes())
            self._most = int(first.max())
        return self._most


def _hash(example_id: str) -> int:
    """The first 64 bits of the digest. Only if two ids had the same, and it were the last one, would a row more be
    kept."""
    return int(digest(example_id)[:16], 16)


def _plain(text: str) -> str:
    """The same for texts that differ only in white space and case."""
    return " ".join(text.split()).casefold()
