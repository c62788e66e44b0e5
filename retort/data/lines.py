"""Lines of plain and gzipped files, one at a time, with errors that name the line."""

import gzip
import json
import zlib
from collections.abc import Iterator

from retort.data.files import DataFile
from retort.errors import DataError

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"


def lines_of(file: DataFile) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its ending). Raises DataError for truncated or damaged gzip data."""
    number = 0
    with file.reading() as raw:
        stream = gzip.GzipFile(fileobj=raw) if file.is_gzip else raw
        try:
            for number, line in enumerate(stream, 1):
                yield number, line.removeprefix(_BOM) if number == 1 else line
        except EOFError as error:
            raise DataError(f"{file.name}: the file is cut in the middle; {_last_good(number)}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            # BadGzipFile is an OSError: catch it here, before it is taken for a disk or network failure.
            raise DataError(_damaged(file, number, error)) from error


def place(file: DataFile, number: int) -> str:
    return f"{file.name}, line {number}"


def decoded(file: DataFile, number: int, line: bytes) -> str:
    """Decode the line. Raises DataError if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        if number == 1 and line.startswith(_GZIP):
            raise DataError(f"{file.name}: this is gzip data; its name must end in .gz") from error
        if error.reason == "unexpected end of data" and not line.endswith(b"\n"):
            raise DataError(cut(file, number)) from error
        where = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
        raise DataError(f"{place(file, number)}: not UTF-8 ({where}); save the file as UTF-8") from error


def storable(text: str) -> str:
    """The text with halves of surrogate pairs replaced, which JSON can express and UTF-8 cannot: a completion that was
    cut inside a pair must not fail what it is stored with."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def json_fault(error: ValueError | RecursionError) -> str:
    """Why a line is not JSON, without the parser's line number, which counts within the line."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return "not JSON (nested too deeply)" if isinstance(error, RecursionError) else f"not JSON ({error})"


def cut(file: DataFile, number: int) -> str:
    return f"{file.name}: the file is cut in the middle: line {number} is incomplete; {_last_good(number - 1)}"


def cause(file: DataFile, rest: Iterator[tuple[int, bytes]], fault: DataError) -> DataError:
    """The real cause of an unreadable line: in a gzip file, damage that often shows only at the end of the data."""
    if file.is_gzip:
        try:
            for _ in rest:
                pass
        except DataError as damage:
            return DataError(f"{damage}. The first bad line: {fault}")
    return fault


def _last_good(number: int) -> str:
    return f"line {number} is the last good one" if number else "not one line is left"


def _damaged(file: DataFile, number: int, error: Exception) -> str:
    if not number and "Not a gzipped file" in str(error):
        return f"{file.name}: its name ends in .gz, but it is not gzip data"
    return f"{file.name}: the gzip data are damaged ({error}), noticed after line {number}"
