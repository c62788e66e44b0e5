"""Files of trees in brackets, as the Penn Treebank has them: a tree on one line or on several. The text is made of the
tree's words."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from retort.data.bad_rows import BadRow, LineRow
from retort.data.files import DataFile
from retort.data.lines import decoded, place
from retort.errors import RowFault
from retort.problems.trees import Unreadable, read_tree, unescaped

TEXT, TREE = "text", "tree"
"""The names of the rows' columns."""
_REMARK = ("*x*", ";;")
"""How lines begin that are no part of a tree: the head of files of the Brown and Switchboard parts, and remarks."""
_BRACKET = re.compile(r"[()]")


def treebank_rows(file: DataFile, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, dict[str, Any]] | BadRow]:
    """A row for each tree, with the place where it begins; a tree that cannot be read is a BadRow."""
    for number, tree in _trees(file, lines):
        where = place(file, number)
        try:
            words = read_tree(tree, is_tag=lambda label: True).words
        except Unreadable as fault:
            told = f"{where}: no tree: {fault.detail[0].lower()}{fault.detail[1:].removesuffix('.')}"
            yield BadRow(where, "not-a-tree", told, tree)
        else:
            yield where, LineRow({TEXT: " ".join(map(unescaped, words)), TREE: tree}, tree.encode())


def _trees(file: DataFile, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
    """(Line where it begins, brackets) of each tree."""
    start, depth, parts = 0, 0, list[str]()
    for number, line in lines:
        text, done = _text(file, number, line), 0
        if not depth and text.startswith(_REMARK):
            continue
        for bracket in _BRACKET.finditer(text):
            depth += 1 if bracket[0] == "(" else -1
            if depth <= 0:
                yield start or number, " ".join([*parts, text[done : bracket.end()].strip()])
                start, depth, parts, done = 0, 0, [], bracket.end()
        if rest := text[done:].strip():
            start = start or number
            parts.append(rest)
    if parts:
        yield start, " ".join(parts)


def _text(file: DataFile, number: int, line: bytes) -> str:
    """A line that is not UTF-8 spoils its tree only, which then has no word of this form."""
    try:
        return decoded(file, number, line)
    except RowFault:
        return line.decode(errors="backslashreplace")
