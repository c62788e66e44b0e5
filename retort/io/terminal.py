"""Printing of text that somebody else wrote: a row's id, a server's message, a file's name."""

import logging
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey (control characters, of which escape sequences consist), what turns the direction of
writing, and halves of surrogate pairs, which cannot be written at all. Tabs and line breaks are none of these."""


def printable(text: str) -> str:
    r"""The text with such characters as `\x1b` and `\u202e`."""
    return _HARMFUL.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print lines for people on standard output, or to `file`. In a terminal, a line that is too long goes on below its
    last column, between two words."""
    out = file or sys.stdout
    lines = printable(text).split("\n")
    if out.isatty():
        lines = [part for line in lines for part in _wrapped(line, _columns())]
    print("\n".join(lines), file=out, flush=True)


class Spoken(logging.Handler):
    """Says on standard error what no other handler takes: warnings of the checks before a run."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), file=sys.stderr)


def say_command(title: str, arguments: Sequence[str]) -> None:
    """Print a command for people to copy. In a terminal, one that is too long goes on after a backslash, between two
    arguments."""
    first, *more = (printable(shlex.quote(argument)) for argument in arguments)
    lines, indent = [f"{title}{first}"], " " * (len(title) + 2)
    for part in more:
        if sys.stdout.isatty() and len(lines[-1]) + len(part) + len("  \\") > _columns():
            lines.append(f"{indent}{part}")
        else:
            lines[-1] += f" {part}"
    print(" \\\n".join(lines), flush=True)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _wrapped(line: str, columns: int) -> list[str]:
    """Columns of a line are what two spaces or more divide. Words stay whole, so that addresses can be copied."""
    start = re.match(r" *(?:\S+ {2,})*", line)
    indent = len(start[0]) if start else 0
    parts = textwrap.wrap(
        line,
        columns,
        subsequent_indent=" " * (indent if indent < columns // 2 else 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    if len(parts) > 1 and len(parts[0]) < indent:  # a word that fits into no line, such as an address
        parts[:2] = [line[:indent] + parts[1].lstrip()]
    return parts or [""]
