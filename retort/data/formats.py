"""Rows of one file: JSON Lines, CSV or Parquet. Each row comes with its place, for error messages."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retort.data.files import DataFile
from retort.data.lines import cause, cut, decoded, json_fault, lines_of, place
from retort.errors import DataError

BATCH_ROWS = 4096

PlacedRow = tuple[str, Mapping[str, Any]]


Lines = Iterator[tuple[int, bytes]]


def rows_of(file: DataFile) -> Iterator[PlacedRow]:
    """Rows in file order; the extension determines the format. Raises DataError."""
    if file.format == "parquet":
        return _parquet_rows(file)
    return _line_rows(file, _csv_rows if file.format == "csv" else _json_rows)


def _line_rows(file: DataFile, read: Callable[[DataFile, Lines], Iterator[PlacedRow]]) -> Iterator[PlacedRow]:
    lines = lines_of(file)
    try:
        yield from read(file, lines)
    except DataError as fault:
        raise cause(file, lines, fault) from fault.__cause__


def _json_rows(file: DataFile, lines: Lines) -> Iterator[PlacedRow]:
    for number, line in lines:
        if line.strip():
            yield place(file, number), _json_object(file, number, line)


def _json_object(file: DataFile, number: int, line: bytes) -> dict[str, Any]:
    text = decoded(file, number, line).rstrip("\r\n")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n") and number > 1:
            raise DataError(cut(file, number)) from error
        hint = "; a JSON array must become one object on each line" if text.lstrip().startswith("[") else ""
        raise DataError(f"{place(file, number)}: {json_fault(error)}{hint}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place(file, number)}: a JSON {_json_name(row)} where an object {{...}} is needed")
    return row


def _json_name(value: object) -> str:
    names = {str: "string", list: "array", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _csv_rows(file: DataFile, lines: Lines) -> Iterator[PlacedRow]:
    """The first line is the header. Empty fields become None, since CSV cannot express a missing value otherwise."""
    reader = csv.reader((decoded(file, number, line) for number, line in lines), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_csv_fault(file, number, error)) from error
        if not fields:
            continue
        if header is None:
            header = _header(file, number, fields)
        elif len(fields) != len(header):
            raise DataError(f"{place(file, number)}: {len(fields)} fields where the header has {len(header)}")
        else:
            yield place(file, number), {name: field or None for name, field in zip(header, fields, strict=True)}


def _header(file: DataFile, number: int, fields: list[str]) -> list[str]:
    wrong = [field for field in fields if not field.strip() or fields.count(field) > 1]
    if wrong:
        fault = f"the column '{wrong[0]}' occurs twice" if wrong[0].strip() else "a column has no name"
        raise DataError(f"{place(file, number)}: in the header, {fault}")
    return fields


def _csv_fault(file: DataFile, number: int, error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return f"{file.name}: the file is cut in the middle: the row that begins in line {number} is incomplete"
    return f"{place(file, number)}: not CSV ({error})"


def _parquet_rows(file: DataFile) -> Iterator[PlacedRow]:
    number = 0
    with file.reading() as stream:
        try:
            with pq.ParquetFile(stream) as table:
                for batch in table.iter_batches(BATCH_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{file.name}, row {number}", row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name, or a text
            if isinstance(error, OSError) and error.errno is not None:
                raise  # from the disk or the network; Arrow's own errors have no errno
            where = f"after row {number}" if number else "from the start"
            raise DataError(f"{file.name}: not a Parquet file, or damaged {where} ({error})") from error
