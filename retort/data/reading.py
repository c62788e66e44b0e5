"""Rows of a source as validated examples; errors name the file and line."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from retort.config import ColumnsConfig, HubConfig, Source
from retort.config.soft_label import AnswerColumnsConfig
from retort.data.bad_rows import BadRow, raw_row
from retort.data.fields import join_fields
from retort.data.files import DataFile, data_files
from retort.data.formats import PlacedRow, rows_of, strict_rows_of
from retort.data.hub import hub_class_names, hub_fingerprint, hub_rows
from retort.data.ids import SeenIds
from retort.data.row_form import FormedRow, RowForm, form_of
from retort.errors import DataError, RowFault
from retort.problems.base import Problem, gold_text, is_missing
from retort.problems.chat import Chat, conversation_text
from retort.records.base import Example, digest

ID_DIGITS = 16
BATCH_ROWS = 1024
"""Rows whose ids are looked up together."""
One = TypeVar("One")


class Folds(NamedTuple):
    """Selects some of a source's rows by their fold number."""

    column: str
    """The column with the fold number, an integer."""
    numbers: frozenset[int]
    inside: bool
    """True selects the rows in these folds, False all others."""


def read_rows_of(
    source: Source, endpoint_url: str | None = None, columns: ColumnsConfig | None = None
) -> Iterator[PlacedRow]:
    """Yield (place, raw row) for every row, file by file in sorted order, in bounded memory. With `columns`, rows are
    in the form that problems read, see `retort.data.row_form`.

    Raises DataError for missing or damaged files and for the first row that cannot be read, StoreUnavailable if the
    bucket fails.
    """
    for rows in _files_of(source, endpoint_url, columns, strict_rows_of):
        for row in rows:
            assert not isinstance(row, BadRow), "readers that are strict raise its fault"
            yield row


def _all_rows_of(source: Source, endpoint_url: str | None, columns: ColumnsConfig) -> Iterator[PlacedRow | BadRow]:
    """Like `read_rows_of`, with the rows that cannot be read."""
    for rows in _files_of(source, endpoint_url, columns, rows_of):
        yield from rows


def _files_of(
    source: Source,
    endpoint_url: str | None,
    columns: ColumnsConfig | None,
    read: Callable[[DataFile], Iterator[PlacedRow | BadRow]],
) -> Iterator[Iterable[PlacedRow | BadRow]]:
    """The rows of each file; a hub's data set counts as one."""
    if isinstance(source, HubConfig):
        rows = hub_rows(source)
        yield (
            rows
            if columns is None
            else map(RowForm(columns, None, partial(hub_class_names, source, columns.tags)), rows)
        )
        return
    for file in data_files(source, endpoint_url):
        yield read(file) if columns is None else map(form_of(file, columns), read(file))


def fingerprint(source: Source, endpoint_url: str | None = None) -> str:
    """A sha256 that changes when the source's content does. Where local files are, and their names, do not matter.

    For files in a bucket it combines ETags and sizes; for a hub data set it uses the commit. Nothing is downloaded.
    """
    if isinstance(source, HubConfig):
        return hub_fingerprint(source)
    return digest([file.identity() for file in data_files(source, endpoint_url)])


def read_examples(
    source: Source,
    columns: ColumnsConfig,
    problem: Problem,
    *,
    gold: Literal["required", "optional"],
    endpoint_url: str | None = None,
    folds: Folds | None = None,
) -> Iterator[Example]:
    """Yield every row (in `folds`, if given) as an example with a unique id and a non-empty text.

    If the text is made of several columns, each of them may be empty. Raises DataError, naming the line.
    """
    read = _Reading(columns, problem, gold == "required")
    rows = read_rows_of(source, endpoint_url, columns)
    for one in read.examples(row for row in rows if folds is None or _is_in(folds, *row)):
        if not isinstance(one, Example):
            raise one.fault
        yield one


def read_pool(
    source: Source, columns: ColumnsConfig, problem: Problem, endpoint_url: str | None = None
) -> Iterator[Example | BadRow]:
    """Like `read_examples` with optional gold labels, but a row that cannot be used is yielded as what it is.

    Raises DataError for missing, cut or damaged files only.
    """
    read = _Reading(columns, problem, gold_is_needed=False)
    for one in read.examples(_all_rows_of(source, endpoint_url, columns)):
        if not isinstance(one, _Unusable):
            yield one
            continue
        place, row, fault = one
        raw = raw_row(row.raw if isinstance(row, FormedRow) else row)
        yield BadRow.of(place, fault, raw, _id_of(place, row, columns))


class _Unusable(NamedTuple):
    place: str
    row: Mapping[str, Any]
    fault: RowFault


class _Read(NamedTuple):
    """What was read of a row, before its id is compared with others."""

    place: str
    row: Mapping[str, Any]
    example_id: str | None
    """None if what comes before it is faulty."""
    outcome: Example | RowFault


class _Reading:
    """Checks the rows of one source, which must have different ids."""

    def __init__(self, columns: ColumnsConfig, problem: Problem, gold_is_needed: bool) -> None:
        self._columns, self._problem, self._gold_is_needed = columns, problem, gold_is_needed
        self._ids = SeenIds()

    def examples(self, rows: Iterable[PlacedRow | BadRow]) -> Iterator[Example | BadRow | _Unusable]:
        """In the order of the rows. Raises what reading them raises, after the rows before."""
        for batch in batches(rows):
            yield from self._unique([one if isinstance(one, BadRow) else self._read(*one) for one in batch])

    def _unique(self, batch: list[_Read | BadRow]) -> Iterator[Example | BadRow | _Unusable]:
        ids = [one.example_id for one in batch if isinstance(one, _Read) and one.example_id is not None]
        known = dict(zip(ids, self._ids.first_places(ids), strict=True))
        new: dict[str, str] = {}
        for one in batch:
            if isinstance(one, BadRow):
                yield one
                continue
            place, row, example_id, outcome = one
            first = None if example_id is None else known[example_id] or new.get(example_id)
            if example_id is not None and first is not None:
                outcome = _duplicate(place, first, example_id, self._columns, named=self._columns.id in row)
            if isinstance(outcome, RowFault):
                yield _Unusable(place, row, outcome)
            else:
                new[outcome.example_id] = place
                yield outcome
        self._ids.add(list(new), list(new.values()))

    def _read(self, place: str, row: Mapping[str, Any]) -> _Read:
        columns, example_id = self._columns, None
        try:
            is_chat = isinstance(self._problem, Chat)
            text = _conversation(place, row, columns) if is_chat else _text(place, row, columns)
            example_id = _example_id(place, row, columns, text)
            label = self._gold(place, row)
            if label is None and self._gold_is_needed:
                told = f"{place}: no gold label, which is needed here; its columns are {_names(row)}"
                raise RowFault(told, "no-gold")
            # Nobody reads those of the pool, so that none of its rows is set aside for one.
            rationale = _rationale(place, row, columns) if self._gold_is_needed else None
            example = Example(example_id, text, label, _group(place, row, columns), rationale)
        except RowFault as fault:
            return _Read(place, row, example_id, fault)
        return _Read(place, row, example_id, example)

    def _gold(self, place: str, row: Mapping[str, Any]) -> str | None:
        try:
            label = self._problem.gold(row, self._columns)
            return None if label is None else unicode_text(place, self._columns.label, label)
        except RowFault:
            raise
        except DataError as error:
            raise RowFault(f"{place}: {error}", "bad-gold") from error


def batches(rows: Iterable[One]) -> Iterator[list[One]]:
    """Some rows at a time. If reading fails, the rows before come first."""
    batch: list[One] = []
    failure: Exception | None = None
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
    except Exception as error:
        failure = error
    yield batch
    if failure:
        raise failure


def _is_in(folds: Folds, place: str, row: Mapping[str, Any]) -> bool:
    return (_fold(place, row, folds.column) in folds.numbers) == folds.inside


def _fold(place: str, row: Mapping[str, Any], column: str) -> int:
    value = row.get(column)
    if column not in row:
        raise RowFault(f"{place}: no column '{column}' for the folds; its columns are {_names(row)}", "no-fold")
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise RowFault(f"{place}: '{column}' is {value!r:.60}, where a whole number is needed", "bad-fold") from None


def _group(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
    if not isinstance(columns, AnswerColumnsConfig) or columns.group is None:
        return None
    if columns.group not in row:
        told = f"{place}: no column '{columns.group}' for the group; its columns are {_names(row)}"
        raise RowFault(told, "no-group")
    value = row[columns.group]
    if isinstance(value, bytes):
        return _utf8(place, columns.group, value)
    if isinstance(value, list | dict):
        raise RowFault(f"{place}: '{columns.group}' is {value!r:.60}, where a text or a number is needed", "bad-group")
    return unicode_text(place, columns.group, str(value))


def _rationale(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
    if columns.rationale is None:
        return None
    try:
        text = gold_text(row, columns.rationale)
    except RowFault:
        raise
    except DataError as error:
        raise RowFault(f"{place}: {error}", "bad-rationale") from error
    return unicode_text(place, columns.rationale, text) or None


def _text(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    if isinstance(columns, AnswerColumnsConfig):
        return join_fields({name: _field(place, row, name) for name in columns.text})
    text = _field(place, row, columns.text)
    if not text.strip():
        reason = "null-text" if is_missing(row[columns.text]) else "empty-text"
        raise RowFault(f"{place}: the text ('{columns.text}') is empty", reason)
    return text


def _conversation(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    if columns.text not in row:
        raise RowFault(f"{place}: no column '{columns.text}' for the turns; its columns are {_names(row)}", "no-text")
    value = row.unformed(columns.text) if isinstance(row, FormedRow) else row[columns.text]
    if is_missing(value):
        raise RowFault(f"{place}: the turns ('{columns.text}') are missing", "null-text")
    if isinstance(value, bytes):
        value = _utf8(place, columns.text, value)
    if isinstance(value, str) and not value.strip():
        raise RowFault(f"{place}: the turns ('{columns.text}') are empty", "empty-text")
    try:
        return conversation_text(value)
    except DataError as error:
        raise RowFault(f"{place}: '{columns.text}': {error}", "no-conversation") from None


def _field(place: str, row: Mapping[str, Any], column: str) -> str:
    """A text column, which may be empty: of several, an answer can be."""
    if column not in row:
        raise RowFault(f"{place}: no column '{column}' for the text; its columns are {_names(row)}", "no-text")
    value = row[column]
    if is_missing(value):
        return ""
    if isinstance(value, bytes):  # of a hub's data set
        return _utf8(place, column, value)
    if not isinstance(value, str):
        raise RowFault(f"{place}: '{column}' is {value!r:.60}, where a text is needed", "not-text")
    return unicode_text(place, column, value)


def _example_id(place: str, row: Mapping[str, Any], columns: ColumnsConfig, text: str) -> str:
    if columns.id not in row:
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
    value = row[columns.id]
    if isinstance(value, bytes):
        value = _utf8(place, columns.id, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number and not (isinstance(value, str) and value.strip()):
        told = f"{place}: the id ('{columns.id}') is {value!r:.60}, where a string or a number is needed"
        raise RowFault(told, "bad-id")
    return unicode_text(place, columns.id, str(value))


def _id_of(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
    """The id of a row that cannot be used, if it has one."""
    try:
        return _example_id(place, row, columns, "") if columns.id in row else None
    except RowFault:
        return None


def unicode_text(place: str, column: str, text: str) -> str:
    """Return the text if UTF-8 can encode it: JSON can express half of a surrogate pair (`\\ud83d`), UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        told = f"{place}: '{column}' holds half of a surrogate pair ({text[error.start]!a})"
        raise RowFault(told, "not-unicode") from error
    return text


def _utf8(place: str, column: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowFault(f"{place}: '{column}' is not UTF-8", "not-utf8") from error


def _duplicate(place: str, first: str, example_id: str, columns: ColumnsConfig, *, named: bool) -> RowFault:
    if named:
        return RowFault(f"{place}: the id '{example_id}' is already that of {first}", "duplicate-id")
    return RowFault(
        f"{place}: the same text as {first}; rows without an id ('{columns.id}') are told apart by their text: "
        "remove one of them, or give the rows ids",
        "duplicate-text",
    )


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in row) or "none"
