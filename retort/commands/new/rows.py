"""The rows of a file as `retort new` looks at them and writes them: with the columns that the YAML file will name."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from retort.commands.new.labels import last_answer
from retort.commands.new.look import CONVERSATIONS
from retort.data import conll
from retort.data.reading import read_rows_of

LOOKED_AT = 10_000
"""Rows of a file that are looked at."""
ANSWER = "answer"
"""The column of an assistant's turn that was taken from the end of its conversation."""

Row = Mapping[str, Any]


class Reader:
    """Reads files. Conversations that end with the assistant's turn are cut before it, see `ANSWER`."""

    def __init__(self, file: str, asked: Mapping[str, str | None]) -> None:
        """`file` and the columns that were `asked` for show whether conversations hold their answers."""
        self.answered: str | None = None
        """The column of conversations that are cut, if they are."""
        if asked["label"] is None and asked["problem"] in (None, "chat"):
            names = (asked["text"],) if asked["text"] else CONVERSATIONS
            rows = self.first_rows(file)
            self.answered = next((name for name in names if any(last_answer(row.get(name)) for row in rows)), None)
            if any(ANSWER in row for row in rows):
                self.answered = None

    def first_rows(self, source: str) -> list[Row]:
        return list(islice(self.rows(source), LOOKED_AT))

    def rows(self, source: str) -> Iterator[Row]:
        """Raises DataError."""
        for _, row in read_rows_of(source):
            yield self._cut(_of_conll(row) if conll.WORDS in row else row)

    def _cut(self, row: Row) -> Row:
        parts = last_answer(row.get(self.answered)) if self.answered else None
        return row if self.answered is None or parts is None else {**row, self.answered: parts[0], ANSWER: parts[1]}


def _of_conll(row: Row) -> Row:
    """A sentence with the names by which the columns of a CoNLL file are read where none is named."""
    renamed = {conll.WORDS: "text", conll.TAGS: "bio"}
    return {renamed.get(name, name): value for name, value in row.items() if not name.isdecimal()}
