"""A row that cannot be used. In the pool it is set aside, in every other source it is an error."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retort.errors import RowFault


@dataclass(frozen=True, slots=True)
class BadRow:
    """What a reader yields in the place of a row that it cannot read; it goes on with the next one."""

    place: str
    """File and line, or file and row."""
    reason: str
    """A short code to count: see `docs/bad-rows.md`."""
    detail: str
    """One human-readable sentence, with the place."""
    raw: str
    """The row as it was: the line, or the JSON of a row that was no line. A byte that is not UTF-8 is `\\xNN`."""
    example_id: str | None = None
    """The row's id, if it could be read."""

    @property
    def fault(self) -> RowFault:
        return RowFault(self.detail, self.reason)


class LineRow(dict[str, Any]):
    """A row that was read from a line, or from several in CSV."""

    __slots__ = ("line",)

    def __init__(self, values: Mapping[str, Any], line: bytes) -> None:
        super().__init__(values)
        self.line = line


def raw_text(line: bytes) -> str:
    """The line without its ending. A byte that is not UTF-8 becomes `\\xNN`."""
    return line.decode(errors="backslashreplace").rstrip("\r\n")


def raw_row(row: Mapping[str, Any]) -> str:
    """The line that it was read from, or JSON, in which a value that cannot be read is shown as what can be said of
    it."""
    if isinstance(row, LineRow):
        return raw_text(row.line)
    values = {name: _readable(row, name) for name in row}
    return json.dumps(values, ensure_ascii=False, default=_shown).encode(errors="backslashreplace").decode()


def _readable(row: Mapping[str, Any], name: str) -> Any:
    try:
        return row[name]
    except RowFault as fault:
        return fault.raw


def _shown(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
