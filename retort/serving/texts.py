"""Texts to label, from any file that Retort reads or from standard input.

A row that cannot be used does not stop the reading; it is returned as a BadRow. A missing, truncated or damaged file
raises DataError.
"""

import csv
import hashlib
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from retort.config import ColumnsConfig
from retort.data.bad_rows import BadRow as UnreadRow
from retort.data.csv_dialect import delimiter_of
from retort.data.fields import join_fields
from retort.data.files import DataFile, data_files
from retort.data.formats import rows_of
from retort.data.lines import json_fault, lines_of, place
from retort.data.reading import ID_DIGITS
from retort.data.row_form import FormedRow, form_of
from retort.errors import DataError, RowFault
from retort.io.strict_json import KeyTwice, json_value
from retort.problems.chat import conversation_text

STANDARD_INPUT = "-"
MOST_CHARACTERS = 100_000
"""Longest text; students read far less."""
HEAD_ROWS = 100
"""If none of this many first rows is usable, the command is probably wrong, not the rows."""


@dataclass(frozen=True, slots=True)
class TextRow:
    row_id: str
    text: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be labeled, and why."""

    place: str
    """File and line, or file and row for Parquet."""
    reason: str
    """A short code to count: `not-json`, `key-twice`, `not-csv`, `no-text`, `empty-text`, `not-unicode`, `too-long`,
    `bad-id`, `no-conversation`, and `not-utf8` or `unreadable` for a value in a Parquet file."""
    detail: str
    """One human-readable sentence, without the text itself."""


class Fields(NamedTuple):
    """Names of the columns to read."""

    text: str
    id: str
    """Rows without an id get a hash of their text, as in training data."""
    columns: tuple[str, ...] = ()
    """The text columns of a student that reads several, used instead of `text`. Their values may be empty."""
    are_conversations: bool = False
    """Whether the column holds turns."""


def read_texts(source: str, fields: Fields) -> Iterator[TextRow | BadRow]:
    """Yield every row of a file, folder, glob, s3:// address or standard input ("-": JSON Lines), in bounded memory.

    Raises DataError, immediately if none of the first rows can be used.
    """
    rows = _lines_in() if source == STANDARD_INPUT else _files(source, fields)
    read = (row if isinstance(row, BadRow) else checked(*row, fields) for row in rows)
    head = list(itertools.islice(read, HEAD_ROWS))
    first = head[0] if head else None
    if isinstance(first, BadRow) and all(isinstance(row, BadRow) for row in head):
        raise DataError(f"{source}: none of the first {len(head)} row(s) can be labeled; {first.place}: {first.detail}")
    return itertools.chain(head, read)


_Placed = tuple[str, Mapping[str, Any]]


def _lines_in() -> Iterator[_Placed | BadRow]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            yield _json_row(f"line {number}", line)


def _files(source: str, fields: Fields) -> Iterator[_Placed | BadRow]:
    files = data_files(source, None)
    for file in files:
        file.format  # noqa: B018  raises for an unknown extension now, not hours later
    for file in files:
        match file.format:
            case "parquet" | "conll" | "treebank":
                yield from _whole_rows(file, fields)
            case "csv":
                yield from _csv_rows(file, fields)
            case _:
                yield from (_json_row(place(file, number), line) for number, line in lines_of(file) if line.strip())


def _whole_rows(file: DataFile, fields: Fields) -> Iterator[_Placed | BadRow]:
    form = form_of(file, ColumnsConfig(id=fields.id, text=fields.text))
    for one in map(form, rows_of(file)):
        if isinstance(one, UnreadRow):
            yield BadRow(one.place, one.reason, one.detail.removeprefix(f"{one.place}: "))
            continue
        where, row = one
        if fields.columns or fields.text not in row:
            _check_column(file, list(row), fields)
        yield where, row


def _json_row(where: str, line: bytes) -> _Placed | BadRow:
    """Parse a line: a JSON object, or a bare JSON string as the text."""
    try:
        # Invalid UTF-8 becomes unpaired surrogates, which are rejected later, for this row only.
        row = json_value(line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        return BadRow(where, "key-twice" if isinstance(error, KeyTwice) else "not-json", json_fault(error))
    if isinstance(row, str):
        return where, {"text": row}
    return (where, row) if isinstance(row, dict) else BadRow(where, "not-json", "neither a JSON object nor a text")


def _csv_rows(file: DataFile, fields: Fields) -> Iterator[_Placed | BadRow]:
    """The first line is the header."""
    lines = (line.decode(errors="surrogateescape") for _, line in lines_of(file))
    first = next(lines, "")
    delimiter = delimiter_of(first, is_tsv=".tsv" in file.path.lower())
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = place(file, reader.line_num + 1)
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(where, "not-csv", f"not CSV ({error})")
            continue
        if header is None:
            header = _check_column(file, values, fields)
        elif len(values) == len(header):
            yield where, {name: value or None for name, value in zip(header, values, strict=True)}
        elif values:
            yield BadRow(where, "not-csv", f"{len(values)} fields where the header has {len(header)}")


def _check_column(file: DataFile, names: list[str], fields: Fields) -> list[str]:
    """Return the names. Raises DataError if a text column is not among them."""
    for name in fields.columns or (fields.text,):
        if name not in names:
            known, hint = ", ".join(f"'{name}'" for name in names), "" if fields.columns else " (--text)"
            raise DataError(f"{file.name}: no column '{name}' for the text{hint}; its columns are {known}")
    return names


def checked(where: str, row: Mapping[str, Any], fields: Fields) -> TextRow | BadRow:
    """The row's text and id, or what is wrong with them."""
    try:
        return _text_row(where, row, fields)
    except RowFault as fault:
        return BadRow(where, fault.reason, str(fault).removeprefix(f"{where}: "))


def _text_row(where: str, row: Mapping[str, Any], fields: Fields) -> TextRow | BadRow:
    """Raises RowFault for a value that cannot be read."""
    if fields.are_conversations:
        return _conversation(where, row, fields)
    text = _joined(row, fields.columns) if fields.columns else row.get(fields.text)
    if isinstance(text, list) and text and all(isinstance(word, str) for word in text):
        text = " ".join(text)
    if isinstance(text, BadField):
        return BadRow(where, "no-text", text.told)
    if not isinstance(text, str):
        what = "missing" if text is None else f"no text but {type(text).__name__}"
        return BadRow(where, "no-text", f"'{fields.text}' is {what}")
    return _named(where, row, fields, text)


def _conversation(where: str, row: Mapping[str, Any], fields: Fields) -> TextRow | BadRow:
    """Like `_text_row` for a column that holds turns."""
    value = row.unformed(fields.text) if isinstance(row, FormedRow) else row.get(fields.text)
    if value is None:
        return BadRow(where, "no-text", f"'{fields.text}' is missing")
    if isinstance(value, str) and (fault := text_fault(value)):
        return BadRow(where, fault[0], f"'{fields.text}' {fault[1]}")
    try:
        return _named(where, row, fields, conversation_text(value))
    except DataError as error:
        return BadRow(where, "no-conversation", f"'{fields.text}': {error}")


def _named(where: str, row: Mapping[str, Any], fields: Fields, text: str) -> TextRow | BadRow:
    """The text with its row's id, if both can be used."""
    if fault := text_fault(text):
        return BadRow(where, fault[0], f"'{fields.text}' {fault[1]}")
    value = row.get(fields.id)
    if value is None:
        return TextRow(hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS], text)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number and (not isinstance(value, str) or not value.strip() or not _is_unicode(value)):
        return BadRow(where, "bad-id", f"'{fields.id}' is neither a number nor a text")
    return TextRow(str(value), text)


class BadField(NamedTuple):
    told: str
    """The problem, as a sentence."""


def _joined(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | BadField:
    values = {name: row.get(name) for name in columns}
    for name, value in values.items():
        if name not in row or not isinstance(value, str | None):
            return BadField(f"'{name}' is {'missing' if name not in row else f'no text but {type(value).__name__}'}")
    return join_fields({name: value or "" for name, value in values.items()})


def text_fault(text: str) -> tuple[str, str] | None:
    """(reason, predicate of a sentence) if the text cannot be labeled, else None."""
    if not text.strip():
        return "empty-text", "is empty"
    if len(text) > MOST_CHARACTERS:
        return "too-long", f"has {len(text):,} characters, more than {MOST_CHARACTERS:,}"
    return None if _is_unicode(text) else ("not-unicode", "is not Unicode (not UTF-8, or half of a surrogate pair)")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Tally:
    """Counts of the rows so far, by outcome."""

    def __init__(self) -> None:
        self.labeled = 0
        self.reasons: Counter[str] = Counter()

    @property
    def bad(self) -> int:
        return self.reasons.total()

    @property
    def bad_share(self) -> float:
        """The share of rows set aside; 0 if there were no rows."""
        return self.bad / max(1, self.labeled + self.bad)

    def __str__(self) -> str:
        parts = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.labeled:,} rows labeled, {self.bad:,} set aside" + (f" ({parts})" if parts else "")
