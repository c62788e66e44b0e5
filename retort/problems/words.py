"""The words of a text, parted where its author parted them."""

import re

_WORD = re.compile(r"[^ \t-\r]+")


def words_of(text: str) -> list[str]:
    """The text split at spaces, tabs and line ends.

    Unlike `str.split`, it does not part words at what only looks like a space or is none at all: the no-break spaces
    U+00A0 and U+202F (as in `10 000`), the ideographic U+3000, and U+2028, U+0085 or U+001C, which occur within words
    that were copied from other programs.
    """
    return _WORD.findall(text)


def word_places(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends in the text, in characters."""
    return [found.span() for found in _WORD.finditer(text)]
