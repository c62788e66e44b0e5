"""Printing of text that somebody else wrote: a row's id, a server's message, a file's name."""

import re
import sys
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
    """Print a line for people on standard output, or to `file`."""
    print(printable(text), file=file or sys.stdout, flush=True)
