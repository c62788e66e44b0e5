"""Lines of plain and compressed files, one at a time, with errors that name the line."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa

from retort.data.bad_rows import BadRow, raw_text
from retort.data.files import DataFile
from retort.errors import DataError, RowFault
from retort.io.strict_json import KeyTwice

_BOM = b"\xef\xbb\xbf"
_SIGNATURES = {
    b"\x1f\x8b": "gzip data; its name must end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd data; its name must end in .zst",
    b"\xfd7zXZ\x00": "xz data; its name must end in .xz",
    b"BZh91AY&SY": "bzip2 data; its name must end in .bz2",
    b"PAR1": "a Parquet file; its name must end in .parquet",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
"""How files begin that are not what their names say."""
_DAMAGE = (gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def lines_of(file: DataFile) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its ending). Raises DataError for truncated or damaged compressed data, and
    for a file that is no text in UTF-8 from its first bytes on."""
    number = 0
    with file.reading() as raw:
        try:
            with _decompressed(file, raw) as stream:
                for number, line in enumerate(stream, 1):
                    yield number, _first_line(file, line) if number == 1 else line
        except EOFError as error:
            raise DataError(f"{file.name}: the file is cut in the middle; {_last_good(number)}") from error
        except (OSError, *_DAMAGE) as error:
            # Damage that is an OSError has no errno. Catch it here, before it is taken for a disk or network failure.
            if isinstance(error, OSError) and (error.errno is not None or not file.compression):
                raise
            raise DataError(_damaged(file, number, error)) from error


@contextmanager
def _decompressed(file: DataFile, raw: BinaryIO) -> Iterator[Iterable[bytes]]:
    """The lines of a file that may consist of several compressed members."""
    match file.compression:
        case ".gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream
        case ".bz2":
            with bz2.BZ2File(raw) as stream:
                yield stream
        case ".xz":
            with lzma.LZMAFile(raw) as stream:
                yield stream
        case ".zst":
            with pa.CompressedInputStream(cast(io.IOBase, raw), "zstd") as blocks:
                yield io.BufferedReader(cast(io.RawIOBase, blocks))
        case _:
            yield raw


def _first_line(file: DataFile, line: bytes) -> bytes:
    """The line without a byte order mark. Raises DataError if it shows that the file is something else."""
    for signature, told in _SIGNATURES.items():
        if line.startswith(signature):
            raise DataError(f"{file.name}: this is {told}")
    if b"\0" in line[:2]:
        raise DataError(f"{file.name}: this is UTF-16 without a byte order mark; save it as UTF-8")
    return line.removeprefix(_BOM)


def place(file: DataFile, number: int) -> str:
    return f"{file.name}, line {number}"


def bad_line(file: DataFile, number: int, line: bytes, fault: RowFault) -> BadRow:
    return BadRow(place(file, number), fault.reason, str(fault), raw_text(line))


def decoded(file: DataFile, number: int, line: bytes) -> str:
    """Decode the line. Raises RowFault if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and not line.endswith(b"\n"):
            raise RowFault(cut(file, number), "incomplete") from error
        where = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
        latin = line[error.start : error.start + 1].decode("cp1252", errors="ignore")
        hint = f"; it may be Latin-1 (Windows-1252), where this byte is '{latin}'" if latin else ""
        told = f"{place(file, number)}: not UTF-8 ({where}); save the file as UTF-8{hint}"
        raise RowFault(told, "not-utf8") from error


def json_fault(error: ValueError | RecursionError) -> str:
    """Why a line is not JSON, without the parser's line number, which counts within the line."""
    if isinstance(error, KeyTwice):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return "not JSON (nested too deeply)" if isinstance(error, RecursionError) else f"not JSON ({error})"


def cut(file: DataFile, number: int) -> str:
    return f"{file.name}: the file is cut in the middle: line {number} is incomplete; {_last_good(number - 1)}"


def cause(file: DataFile, rest: Iterator[object], fault: DataError) -> DataError:
    """The real cause of an unreadable row: in a compressed file, damage that often shows only at the end."""
    if file.compression:
        try:
            for _ in rest:
                pass
        except DataError as damage:
            return DataError(f"{damage}. The first bad line: {fault}")
    return fault


def _last_good(number: int) -> str:
    return f"line {number} is the last good one" if number else "not one line is left"


def _damaged(file: DataFile, number: int, error: Exception) -> str:
    kind = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}[file.compression]
    if "Truncated" in str(error):  # how Arrow says it
        return f"{file.name}: the file is cut in the middle; {_last_good(number)}"
    if not number and any(sign in str(error) for sign in _NOT_AT_ALL):
        return f"{file.name}: its name ends in {file.compression}, but it is not {kind} data"
    return f"{file.name}: the {kind} data are damaged ({error}), noticed after line {number}"


_NOT_AT_ALL = ("Not a gzipped file", "Invalid data stream", "Input format not supported", "Unknown frame descriptor")
