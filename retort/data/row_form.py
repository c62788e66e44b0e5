"""Rows in the form that problems read, whatever form their file has.

A text may be a list of words, tags may be of any form or numbers of named classes, and a column may lie within another
one (`answer.text`). A value is brought into form when it is asked for, so that a column which nobody reads may be
anything.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from retort.config import ColumnsConfig
from retort.data import conll, treebank
from retort.data.bad_rows import BadRow
from retort.data.class_names import names_inside
from retort.data.files import DataFile
from retort.data.formats import PlacedRow
from retort.data.tagging import TagForm
from retort.errors import RowFault
from retort.problems.base import is_missing
from retort.problems.words import words_of

NO_BREAK = "\u00a0"


class RowForm:
    """How the columns of one file are to be read."""

    def __init__(
        self, columns: ColumnsConfig, file: DataFile | None, find_names: Callable[[], list[str] | None]
    ) -> None:
        """`find_names` finds out which tags the numbers mean, if they are numbers."""
        self._columns, self._find_names = columns, find_names
        self._texts = {columns.text} if isinstance(columns.text, str) else set(columns.text)
        self._tag_form = TagForm()
        self._instead: dict[str, str] = {}
        match file and file.format:
            case "conll":
                self._instead = {**dict.fromkeys(self._texts, conll.WORDS), columns.tags: conll.TAGS}
            case "treebank":
                self._instead = {**dict.fromkeys(self._texts, treebank.TEXT), columns.label: treebank.TREE}

    def __call__(self, one: PlacedRow | BadRow) -> PlacedRow | BadRow:
        return one if isinstance(one, BadRow) else (one[0], FormedRow(self, *one))

    def raw(self, row: Mapping[str, Any], name: str) -> Any:
        """The value as the file has it. Raises KeyError, RowFault."""
        instead = self._instead.get(name)
        if instead is not None and not name.isdecimal():
            return row[instead]
        return row[name] if name in row or "." not in name else _within(row, name)

    def has(self, row: Mapping[str, Any], name: str) -> bool:
        """Whether `raw` finds a value, which may be one that cannot be read. Nothing is decoded that need not be."""
        instead = self._instead.get(name)
        if instead is not None and not name.isdecimal():
            return instead in row
        if name in row or "." not in name:
            return name in row
        try:
            _within(row, name)
        except KeyError:
            return False
        except RowFault:
            pass
        return True

    def value(self, place: str, row: Mapping[str, Any], name: str) -> Any:
        """Raises KeyError, RowFault."""
        value = self.raw(row, name)
        if name in self._texts and isinstance(value, list):
            return self._text(place, row, name, value)
        return self._tags(place, value) if name == self._columns.tags else value

    def _text(self, place: str, row: Mapping[str, Any], name: str, words: list[Any]) -> Any:
        if not all(isinstance(word, str) for word in words):
            return words
        if self._instead.get(name) == conll.WORDS and not name.isdecimal() and _are_numbers(words):
            told = (
                f"{place}: the first column counts the words; name the one that holds them, as data.columns.text: '2'"
            )
            raise RowFault(told, "wrong-columns")
        if not self._has_tags(row):
            return " ".join(words)
        pieces = [words_of(word) for word in words]
        if [] in pieces:
            raise RowFault(f"{place}: word {pieces.index([]) + 1} of '{name}' is empty", "empty-word")
        return " ".join(NO_BREAK.join(one) for one in pieces)  # a word with a space in it stays one

    def _has_tags(self, row: Mapping[str, Any]) -> bool:
        try:
            return not is_missing(self.raw(row, self._columns.tags))
        except (KeyError, RowFault):
            return False

    def _tags(self, place: str, value: Any) -> Any:
        if not isinstance(value, str | list):
            return value
        tags = words_of(value) if isinstance(value, str) else value
        if tags and all(_is_number(tag) for tag in tags):
            tags = [self._name(place, int(tag)) for tag in tags]
        return self._tag_form.bio(place, tags) if all(isinstance(tag, str) for tag in tags) else value

    def _name(self, place: str, number: int) -> str:
        names = self._names
        if names is None:
            raise RowFault(
                f"{place}: the tags ('{self._columns.tags}') are numbers, and neither the file nor a card beside it "
                "names them; list the names, from that of 0 on, in data.columns.tag_names, as [O, B-CITY, I-CITY]",
                "bad-tags",
            )
        if number >= len(names):
            raise RowFault(f"{place}: tag {number} has no name; there are {len(names)}, from 0 on", "bad-tags")
        return names[number]

    @cached_property
    def _names(self) -> list[str] | None:
        return self._columns.tag_names or self._find_names()


class FormedRow(Mapping[str, Any]):
    """A row of a file, whose values are brought into form."""

    __slots__ = ("_form", "_row", "place")

    def __init__(self, form: RowForm, place: str, row: Mapping[str, Any]) -> None:
        self._form, self.place, self._row = form, place, row

    @property
    def raw(self) -> Mapping[str, Any]:
        """The row as the file has it."""
        return self._row

    def unformed(self, name: str) -> Any:
        """The value as the file has it. Raises KeyError, RowFault."""
        return self._form.raw(self._row, name)

    def __getitem__(self, name: str) -> Any:
        return self._form.value(self.place, self._row, name)

    def __contains__(self, name: object) -> bool:
        return self._form.has(self._row, str(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def form_of(file: DataFile, columns: ColumnsConfig) -> RowForm:
    return RowForm(columns, file, lambda: names_inside(file, columns.tags))


def _within(row: Mapping[str, Any], name: str) -> Any:
    """The value at a path such as `answer.text`; null if something on the way is. Raises KeyError."""
    value: Any = row
    for part in name.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise KeyError(name)
        value = value[part]
    return value


def _is_number(tag: object) -> bool:
    return tag.isdecimal() if isinstance(tag, str) else isinstance(tag, int) and not isinstance(tag, bool) and tag >= 0


def _are_numbers(words: list[str]) -> bool:
    return len(words) > 2 and words == [str(number) for number in range(1, len(words) + 1)]
