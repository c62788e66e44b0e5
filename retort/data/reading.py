"""Rows of a source as validated examples; errors name the file and line."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from retort.config import ColumnsConfig, HubConfig, Source
from retort.config.soft_label import AnswerColumnsConfig
from retort.data.fields import join_fields
from retort.data.files import data_files
from retort.data.formats import PlacedRow, rows_of
from retort.data.hub import hub_fingerprint, hub_rows
from retort.errors import DataError
from retort.problems.base import Problem
from retort.problems.chat import Chat, conversation_text
from retort.records.base import Example, digest

ID_DIGITS = 16


class Folds(NamedTuple):
    """Selects some of a source's rows by their fold number."""

    column: str
    """The column with the fold number, an integer."""
    numbers: frozenset[int]
    inside: bool
    """True selects the rows in these folds, False all others."""


def read_rows_of(source: Source, endpoint_url: str | None = None) -> Iterator[PlacedRow]:
    """Yield (place, raw row) for every row, file by file in sorted order, in bounded memory.

    Raises DataError for missing or damaged files, StoreUnavailable if the bucket fails.
    """
    if isinstance(source, HubConfig):
        yield from hub_rows(source)
        return
    for file in data_files(source, endpoint_url):
        yield from rows_of(file)


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
    ids = _Ids()
    for place, row in read_rows_of(source, endpoint_url):
        if folds is not None and (_fold(place, row, folds.column) in folds.numbers) != folds.inside:
            continue
        text = _conversation(place, row, columns) if isinstance(problem, Chat) else _text(place, row, columns)
        example_id = _example_id(place, row, columns, text)
        first = ids.first_place(example_id, place)
        if first is not None:
            raise DataError(_duplicate(place, first, example_id, columns, named=columns.id in row))
        try:
            label = problem.gold(row, columns)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        if label is None and gold == "required":
            raise DataError(f"{place}: no gold label, which is needed here; its columns are {_names(row)}")
        yield Example(example_id, text, label, _group(place, row, columns))


class _Ids:
    """The ids seen so far, with their places packed into integers: a million ids take about 0.2 GB."""

    _NUMBER_BITS = 40

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._files: list[str] = []

    def first_place(self, example_id: str, place: str) -> str | None:
        """Where the id was first seen, or None if it is new; a new id is remembered."""
        file, _, number = place.rpartition(" ")
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        code = ((len(self._files) - 1) << self._NUMBER_BITS) + int(number)
        first = self._codes.setdefault(example_id, code)
        if first == code:
            return None
        index, first_number = divmod(first, 1 << self._NUMBER_BITS)
        return f"{self._files[index]} {first_number}"


def _fold(place: str, row: Mapping[str, Any], column: str) -> int:
    value = row.get(column)
    if column not in row:
        raise DataError(f"{place}: no column '{column}' for the folds; its columns are {_names(row)}")
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{place}: '{column}' is {value!r:.60}, where a whole number is needed") from None


def _group(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
    if not isinstance(columns, AnswerColumnsConfig) or columns.group is None:
        return None
    if columns.group not in row:
        raise DataError(f"{place}: no column '{columns.group}' for the group; its columns are {_names(row)}")
    return _unicode(place, columns.group, str(row[columns.group]))


def _text(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    if isinstance(columns, AnswerColumnsConfig):
        return join_fields({name: _field(place, row, name) for name in columns.text})
    text = row.get(columns.text)
    if columns.text not in row:
        raise DataError(f"{place}: no column '{columns.text}' for the text; its columns are {_names(row)}")
    if not isinstance(text, str) and text is not None:
        raise DataError(f"{place}: '{columns.text}' is {text!r:.60}, where a text is needed")
    if text is None or not text.strip():
        raise DataError(f"{place}: the text ('{columns.text}') is empty")
    return _unicode(place, columns.text, text)


def _conversation(place: str, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    if columns.text not in row:
        raise DataError(f"{place}: no column '{columns.text}' for the turns; its columns are {_names(row)}")
    try:
        return conversation_text(row[columns.text])
    except DataError as error:
        raise DataError(f"{place}: '{columns.text}': {error}") from None


def _field(place: str, row: Mapping[str, Any], column: str) -> str:
    """One of several text columns; it may be empty, since an answer can be."""
    value = row.get(column)
    if column not in row:
        raise DataError(f"{place}: no column '{column}' for the text; its columns are {_names(row)}")
    if not isinstance(value, str) and value is not None:
        raise DataError(f"{place}: '{column}' is {value!r:.60}, where a text is needed")
    return _unicode(place, column, value or "")


def _example_id(place: str, row: Mapping[str, Any], columns: ColumnsConfig, text: str) -> str:
    if columns.id not in row:
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
    value = row[columns.id]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number and not (isinstance(value, str) and value.strip()):
        raise DataError(f"{place}: the id ('{columns.id}') is {value!r:.60}, where a string or a number is needed")
    return _unicode(place, columns.id, str(value))


def _unicode(place: str, column: str, text: str) -> str:
    """Return the text if UTF-8 can encode it: JSON can express half of a surrogate pair (`\\ud83d`), UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: '{column}' holds half of a surrogate pair ({text[error.start]!a})") from error
    return text


def _duplicate(place: str, first: str, example_id: str, columns: ColumnsConfig, *, named: bool) -> str:
    if named:
        return f"{place}: the id '{example_id}' is already that of {first}"
    return (
        f"{place}: the same text as {first}; rows without an id ('{columns.id}') are told apart by their text: "
        "remove one of them, or give the rows ids"
    )


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in row) or "none"
