"""Rows of one file: JSON Lines, CSV, CoNLL, trees or Parquet. Each row comes with its place, for error messages."""

import csv
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from retort.data.bad_rows import BadRow, LineRow, raw_text
from retort.data.conll import conll_rows
from retort.data.csv_dialect import delimiter_of, excel_delimiter
from retort.data.files import DataFile
from retort.data.lines import bad_line, cause, cut, decoded, json_fault, lines_of, place
from retort.data.treebank import treebank_rows
from retort.errors import DataError, RowFault, first_line
from retort.io.strict_json import KeyTwice, json_value

BATCH_ROWS = 4096

PlacedRow = tuple[str, Mapping[str, Any]]
Lines = Iterator[tuple[int, bytes]]


def rows_of(file: DataFile) -> Iterator[PlacedRow | BadRow]:
    """Rows in file order; the extension determines the format. A row that cannot be read does not stop the reading.

    Raises DataError for a file that is damaged, cut or no such file as its name says.
    """
    if file.format == "parquet":
        return _parquet_rows(file)
    read = {"jsonl": _json_rows, "csv": _csv_rows, "conll": conll_rows, "treebank": treebank_rows}[file.format]
    return read(file, lines_of(file))


def strict_rows_of(file: DataFile) -> Iterator[PlacedRow]:
    """Like `rows_of`, but raises the fault of the first bad row."""
    rows = rows_of(file)
    for row in rows:
        if isinstance(row, BadRow):
            raise cause(file, rows, row.fault)
        yield row


def _json_rows(file: DataFile, lines: Lines) -> Iterator[PlacedRow | BadRow]:
    for number, line in lines:
        if line.strip():
            try:
                yield place(file, number), LineRow(_json_object(file, number, line), line)
            except RowFault as fault:
                yield bad_line(file, number, line, fault)


def _json_object(file: DataFile, number: int, line: bytes) -> dict[str, Any]:
    text = decoded(file, number, line).rstrip("\r\n")
    try:
        row = json_value(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, KeyTwice):
            raise RowFault(f"{place(file, number)}: {error}", "key-twice") from error
        if not line.endswith(b"\n") and number > 1:
            raise RowFault(cut(file, number), "incomplete") from error
        hint = "; a JSON array must become one object on each line" if text.lstrip().startswith("[") else ""
        raise RowFault(f"{place(file, number)}: {json_fault(error)}{hint}", "not-json") from error
    if not isinstance(row, dict):
        hint = "; write its objects one on each line" if isinstance(row, list) else ""
        told = f"{place(file, number)}: a JSON {_json_name(row)} where an object {{...}} is needed{hint}"
        raise RowFault(told, "not-json")
    return row


def _json_name(value: object) -> str:
    names = {str: "string", list: "array", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _csv_rows(file: DataFile, lines: Lines) -> Iterator[PlacedRow | BadRow]:
    """The first line is the header. Empty fields become None, since CSV cannot express a missing value otherwise."""
    text = _CsvLines(file, lines)
    reader = csv.reader(text, delimiter=text.find_delimiter(), strict=True)
    header: list[str] | None = None
    while True:
        try:
            fields = _csv_fields(text, reader)
            if header is not None and fields and len(fields) != len(header):
                told = f"{text.place}: {len(fields)} fields where the header has {len(header)}"
                raise RowFault(told, "wrong-columns")
        except StopIteration:
            return
        except RowFault as fault:
            if header is None:
                raise
            yield BadRow.of(text.place, fault, raw_text(text.line))
            continue
        if header is None:
            header = _header(text.place, fields) if fields else None
        elif fields:
            values = {name: field or None for name, field in zip(header, fields, strict=True)}
            yield text.place, LineRow(values, text.line)


class _CsvLines:
    """The lines of a CSV file for the parser, which remembers those of the current row: if an open quote made it take
    more lines than the row has, these are read again."""

    def __init__(self, file: DataFile, lines: Lines) -> None:
        self._file, self._lines = file, lines
        self._again: deque[tuple[int, bytes]] = deque()
        self._row: list[tuple[int, bytes]] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        number, line = self._again.popleft() if self._again else next(self._lines)
        self._row.append((number, line))
        return line.decode(errors="surrogateescape")

    def find_delimiter(self) -> str:
        """What parts the fields. Only the header is looked at; it is read again then."""
        for number, line in self._lines:
            text = line.decode(errors="replace")
            if (told := excel_delimiter(text)) is not None:
                return told
            if text.strip():
                self._again.append((number, line))
                return delimiter_of(text, is_tsv=".tsv" in self._file.path.lower())
        return ","

    def start_row(self) -> None:
        self._row.clear()

    def end_row_at_its_first_line(self) -> None:
        self._again.extendleft(reversed(self._row[1:]))
        del self._row[1:]

    def check_encoding(self) -> None:
        """Raises RowFault if a line of the row is not UTF-8."""
        for number, line in self._row:
            decoded(self._file, number, line)

    @property
    def place(self) -> str:
        """Where the current row begins."""
        return place(self._file, self._row[0][0])

    @property
    def line(self) -> bytes:
        """The current row as it is in the file."""
        return b"".join(line for _, line in self._row)

    def fault(self, error: csv.Error) -> RowFault:
        if "unexpected end of data" in str(error):
            told = f"the file is cut in the middle: the row that begins in line {self._row[0][0]} is incomplete"
            return RowFault(f"{self._file.name}: {told}", "incomplete")
        if "new-line character" in str(error):
            return RowFault(f"{self.place}: not CSV: its lines end in CR alone; save it with LF or CRLF", "not-csv")
        return RowFault(f"{self.place}: not CSV ({error})", "not-csv")


def _csv_fields(text: _CsvLines, reader: Iterator[list[str]]) -> list[str]:
    """The next row's fields. Raises RowFault, after which the reading goes on in the next line."""
    text.start_row()
    try:
        fields = next(reader)
    except csv.Error as error:
        text.end_row_at_its_first_line()
        text.check_encoding()
        raise text.fault(error) from error
    text.check_encoding()
    return fields


def _header(where: str, fields: list[str]) -> list[str]:
    wrong = [field for field in fields if not field.strip() or fields.count(field) > 1]
    if wrong:
        fault = f"the column '{wrong[0]}' occurs twice" if wrong[0].strip() else "a column has no name"
        raise DataError(f"{where}: in the header, {fault}")
    return fields


def _parquet_rows(file: DataFile) -> Iterator[PlacedRow]:
    number = 0
    with file.reading() as stream:
        try:
            with pq.ParquetFile(stream) as table:
                _check_names(file, table.schema_arrow.names)
                for batch in table.iter_batches(BATCH_ROWS):
                    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                    for index in range(batch.num_rows):
                        number += 1
                        where = f"{file.name}, row {number}"
                        yield where, _ParquetRow(where, columns, index)
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names of columns that are not UTF-8
            if isinstance(error, OSError) and error.errno is not None:
                raise  # from the disk or the network; Arrow's own errors have no errno
            where = f"after row {number}" if number else "from the start"
            raise DataError(f"{file.name}: not a Parquet file, or damaged {where} ({error})") from error


def _check_names(file: DataFile, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file.name}: the column '{twice[0]}' occurs twice")


class _ParquetRow(Mapping[str, Any]):
    """Decodes a value when it is asked for: a column that nobody reads may hold what Python or UTF-8 cannot express."""

    __slots__ = ("_columns", "_index", "_place")

    def __init__(self, where: str, columns: "Mapping[str, pa.Array[Any]]", index: int) -> None:
        self._place, self._columns, self._index = where, columns, index

    def __getitem__(self, name: str) -> Any:
        """Binary values are read as UTF-8. Raises KeyError, RowFault."""
        value = self._columns[name][self._index]
        try:
            return _with_texts(value.as_py())
        except UnicodeDecodeError as error:
            raw = error.object.decode(errors="backslashreplace")
            raise RowFault(f"{self._place}: '{name}' is not UTF-8", "not-utf8", raw) from error
        except (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            told = f"{self._place}: '{name}' cannot be read ({first_line(error)})"
            raise RowFault(told, "unreadable", f"({value.type}: {first_line(error)})") from error

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _with_texts(value: Any) -> Any:
    """The value, with binary values in it as the texts that they are in UTF-8. Raises UnicodeDecodeError."""
    match value:
        case bytes():
            return value.decode()
        case list():
            return [_with_texts(one) for one in value]
        case dict():
            return {name: _with_texts(one) for name, one in value.items()}
    return value
