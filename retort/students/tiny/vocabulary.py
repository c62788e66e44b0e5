"""Words to ids, with a table small enough for a student of 30,000 parameters.

A word is a run of lower-cased letters and digits, truncated to `STEM` characters: "evaporates", "evaporated" and
"evaporation" are the same word. This one-line stemmer is easy to repeat in a standalone scorer; it makes a table of
1,000 words cover more of a language, and lets an answer's words match those of its reference.

    0                      padding
    1 ... fields           a mark at the start of each field, so that an empty field is not empty
    ... buckets            hash buckets (CRC-32) of words that are not in the table
    ... vocabulary_size    the table: the most frequent words of the training texts, ties in alphabetical order
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retort.errors import ConfigError, DataError
from retort.students.tiny.shape import TinyShape, TinyTexts

STEM = 6
WORD = r"[^\W_]+"
BUCKETS_SHARE = 1 / 8
MIN_COUNT = 2
"""Minimum count of a word in the table. Rarer words go to their bucket, which thus learns about rare words."""


@dataclass(frozen=True)
class Vocabulary:
    fields: tuple[str, ...]
    buckets: int
    words: tuple[str, ...]
    """The table, most frequent first; the first word has the id `1 + fields + buckets`."""
    max_words: int

    @classmethod
    def fit(cls, rows: Iterable[Sequence[str]], shape: TinyShape) -> "Vocabulary":
        """Builds the table from training rows of one text per field. Raises ConfigError if the shape leaves no room for
        a table, DataError if a row has another number of fields."""
        buckets = int(shape.vocabulary_size * BUCKETS_SHARE)
        room = shape.vocabulary_size - 1 - len(shape.fields) - buckets
        if room < 1 or buckets < 1:
            raise ConfigError(f"vocabulary_size = {shape.vocabulary_size} leaves no room for words; give 100 or more")
        counts = Counter(stem for row in rows for text in _checked(row, shape.fields) for stem in stems(text))
        common = sorted((stem for stem, n in counts.items() if n >= MIN_COUNT), key=lambda stem: (-counts[stem], stem))
        return cls(shape.fields, buckets, tuple(common[:room]), shape.max_words)

    @property
    def size(self) -> int:
        return 1 + len(self.fields) + self.buckets + len(self.words)

    def encode(self, rows: Sequence[Sequence[str]]) -> TinyTexts:
        """Word and field ids, `(rows, longest)` each: the fields one after another, each cut to `max_words` words.

        Raises DataError if a row has another number of fields.
        """
        encoded = [[self._field(place, text) for place, text in enumerate(_checked(row, self.fields))] for row in rows]
        length = max((sum(map(len, row)) for row in encoded), default=1)
        word_ids = np.zeros((len(rows), length), dtype=np.int64)
        field_ids = np.zeros_like(word_ids)
        for index, row in enumerate(encoded):
            size = sum(map(len, row))
            word_ids[index, :size] = [number for field in row for number in field]
            field_ids[index, :size] = np.repeat(np.arange(len(row)), [len(field) for field in row])
        return TinyTexts(word_ids, field_ids)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: self.size - len(self.words) + place for place, word in enumerate(self.words)}

    def _field(self, place: int, text: str) -> list[int]:
        words = stems(text)[: self.max_words]
        return [1 + place, *(self._numbers.get(word) or self._bucket(word) for word in words)]

    def _bucket(self, word: str) -> int:
        return 1 + len(self.fields) + zlib.crc32(word.encode()) % self.buckets

    def as_unknown(self) -> NDArray[np.int64]:
        """`(size,)`: the id that each id's word would have if it were not in the table."""
        numbers = np.arange(self.size)
        numbers[self.size - len(self.words) :] = [self._bucket(word) for word in self.words]
        return numbers


def stems(text: str) -> list[str]:
    return [word[:STEM] for word in re.findall(WORD, text.lower())]


def _checked(row: Sequence[str], fields: Sequence[str]) -> Sequence[str]:
    if isinstance(row, str) or len(row) != len(fields):
        given = "a text" if isinstance(row, str) else f"{len(row)} texts"
        raise DataError(f"a row for the tiny student holds {given}, not one for each of: {', '.join(fields)}")
    return row
