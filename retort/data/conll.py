"""Sentences of CoNLL files: a line is a word, its columns parted by tabs or spaces, and a blank line ends a sentence.

A comment `# name: value` or `# name = value` before the first word is a column of the row, such as its id or intent.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from retort.data.bad_rows import BadRow, LineRow, raw_text
from retort.data.files import DataFile
from retort.data.lines import decoded, place
from retort.errors import RowFault

WORDS, TAGS = "first column", "last column"
"""The names of the columns that hold words and tags unless `data.columns` gives numbers; all have numbers, from "1"."""
_DOCUMENT = b"-DOCSTART-"
_TAG = re.compile(r"O|[BIESLUMW]-.+")
_COMMENT = re.compile(r"#+\s*([\w.-]+)\s*[:=]\s*(.*)")
_SPACES = re.compile(r"[ \t]+")

Block = list[tuple[int, bytes]]


def conll_rows(file: DataFile, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, dict[str, Any]] | BadRow]:
    """A row for each sentence, with its place; a sentence that cannot be read is a BadRow."""
    layout = _Layout()
    for block in _blocks(lines):
        where, whole = place(file, block[0][0]), b"".join(line for _, line in block)
        try:
            row = layout.row(file, block)
        except RowFault as fault:
            yield BadRow(where, fault.reason, str(fault), raw_text(whole))
        else:
            if row is not None:
                yield where, LineRow(row, whole)


def _blocks(lines: Iterable[tuple[int, bytes]]) -> Iterator[Block]:
    """The lines of each sentence, with the comments before it."""
    block: Block = []
    for number, line in lines:
        is_document = line.startswith(_DOCUMENT)
        if line.strip() and not is_document:
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


class _Layout:
    """How the file's lines are parted, as its first word shows."""

    def __init__(self) -> None:
        self._tabs = self._ends_in_tags = False
        self._num_columns = 0

    def row(self, file: DataFile, block: Block) -> dict[str, Any] | None:
        """None for comments without a sentence. Raises RowFault."""
        texts = [(number, decoded(file, number, line).rstrip("\r\n\t ")) for number, line in block]
        if not self._num_columns:
            self._look(texts)
        num_comments = next((at for at, (_, text) in enumerate(texts) if not self._is_comment(text)), len(texts))
        comments, words = texts[:num_comments], texts[num_comments:]
        if not words:
            return None
        cells = [self._cells(file, number, text) for number, text in words]
        columns = [list(column) for column in zip(*cells, strict=True)]
        row: dict[str, Any] = {found[1]: found[2] for _, text in comments if (found := _COMMENT.fullmatch(text))}
        row.update({str(at): column for at, column in enumerate(columns, 1)})
        row[WORDS] = columns[0]
        if len(columns) > 1:
            row[TAGS] = columns[-1]
        return row

    def _look(self, texts: list[tuple[int, str]]) -> None:
        line = next((text for _, text in texts if not text.startswith("#")), None)
        if line is None:
            line = next((text for _, text in texts if _TAG.fullmatch(_SPACES.split(text)[-1])), None)
        if line is not None:
            self._tabs = "\t" in line
            cells = self._parted(line)
            self._num_columns, self._ends_in_tags = len(cells), _TAG.fullmatch(cells[-1]) is not None

    def _parted(self, text: str) -> list[str]:
        return text.split("\t") if self._tabs else _SPACES.split(text)

    def _is_comment(self, text: str) -> bool:
        """Whether a line with a hash sign is no word: it has other columns than words have, or does not end like them.
        In doubt it is a word, which is then refused for its tag and not lost."""
        if not text.startswith("#"):
            return False
        cells = self._parted(text)
        if len(cells) != self._num_columns:
            return True
        return _TAG.fullmatch(cells[-1]) is None if self._ends_in_tags else _COMMENT.fullmatch(text) is not None

    def _cells(self, file: DataFile, number: int, text: str) -> list[str]:
        cells = self._parted(text)
        if len(cells) != self._num_columns:
            told = f"{len(cells)} columns where the first word of the file has {self._num_columns}"
            raise RowFault(f"{place(file, number)}: {told}", "wrong-columns")
        return cells
