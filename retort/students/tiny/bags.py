"""Rows as the network reads them: encoded on disk, a batch of them as bags of words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.io.batched import batched
from retort.students.ragged import Ragged
from retort.students.tiny.shape import TinyTexts
from retort.students.tiny.vocabulary import Vocabulary

Indices = NDArray[np.int64]

_ENCODED_ROWS = 256
"""Rows that are encoded at once."""

_MOST_IN_TABLE = 2**18


@dataclass(frozen=True, slots=True)
class Bags:
    """A batch as bags of word kinds (a word with its field and overlaps), each of which is stored once."""

    word_ids: Tensor
    """`(kinds,)`: the word id of each kind."""
    features: Tensor
    """`(kinds, features)`, 0 or 1: one-hot the word's field, then the other fields in which it occurs."""
    counts: Tensor
    """`(rows, kinds)`: how often each kind occurs in a row."""
    members: Tensor
    """`(rows, length)`: the kind of each word of a row; that of the first word pads the row."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The arguments of `logits`, without its axis of students."""
        return self.word_ids, self.features, self.counts, self.members


def word_traits(texts: TinyTexts, num_fields: int, *, overlap: bool) -> Indices:
    """Encodes each word's field `f` and, with `overlap`, the other fields `g` in which it occurs, as
    `f + num_fields * sum of 2^g`: `(rows, length)`."""
    traits = texts.field_ids.copy()
    if not overlap or num_fields == 1:
        return traits
    fields = np.arange(num_fields)
    for start in range(0, len(traits), 256):  # compares all pairs of words of a row
        ids, own = (part[start : start + 256] for part in (texts.word_ids, texts.field_ids))
        is_own = (own[..., None] == fields) & (ids > 0)[..., None]
        occurs = np.matmul(ids[:, :, None] == ids[:, None, :], is_own, dtype=np.float32) > 0
        traits[start : start + 256] += num_fields * ((occurs & ~is_own & (ids > 0)[..., None]) @ 2**fields)
    return traits


def as_bags(
    word_ids: Indices, traits: Indices, rows: Indices, places: Indices, num_fields: int, *, overlap: bool
) -> Bags:
    """The batch of words, one after the other, with the row of each and its place in it, `(words,)` each; every row has
    a word at place 0."""
    size, num_rows = int(word_ids.max()) + 1, int(rows[-1]) + 1
    kinds, kind_of = _distinct(traits * size + word_ids)
    counts = np.bincount(rows * len(kinds) + kind_of, minlength=num_rows * len(kinds))
    own, elsewhere = np.divmod(kinds // size, num_fields)[::-1]
    fields, sides = np.arange(num_fields), 2 if overlap and num_fields > 1 else 1
    features = np.empty((len(kinds), sides, num_fields), dtype=np.float32)
    features[:, 0] = own[:, None] == fields
    features[:, 1:] = (elsewhere[:, None] >> fields & 1)[:, None]
    members = np.repeat(kind_of[places == 0][:, None], int(places.max()) + 1, axis=1)
    members[rows, places] = kind_of
    return Bags(
        torch.from_numpy(kinds % size),
        torch.from_numpy(features.reshape(len(kinds), -1)),
        torch.from_numpy(counts.reshape(num_rows, len(kinds)).astype(np.float32)),
        torch.from_numpy(members),
    )


def _distinct(numbers: Indices) -> tuple[Indices, Indices]:
    """(the distinct numbers in order, the index among them of each number). By a table if they are small, as nearly
    always, in a sixth of the time of `np.unique`."""
    most = int(numbers.max())
    if most > _MOST_IN_TABLE:
        return np.unique(numbers, return_inverse=True)
    occurs = np.zeros(most + 1, dtype=np.bool_)
    occurs[numbers] = True
    distinct = np.flatnonzero(occurs)
    index = np.empty(most + 1, dtype=np.int64)
    index[distinct] = np.arange(len(distinct))
    return distinct, index[numbers]


class EncodedRows:
    """The words of rows, in a temporary file once they are many; in memory are 8 bytes a row. A word is one number, of
    its id and its traits, in the smallest type that holds all of them."""

    def __init__(self, rows: Iterable[Sequence[str]], vocabulary: Vocabulary) -> None:
        """Each row has one text per field. Raises DataError if one has another number of them."""
        self._num_fields, self._num_ids = len(vocabulary.fields), vocabulary.size
        smallest = np.min_scalar_type(self._num_ids * self._num_fields * 2**self._num_fields)
        self._codes = Ragged()
        for batch in batched(rows, _ENCODED_ROWS):
            texts = vocabulary.encode(batch)
            codes = word_traits(texts, self._num_fields, overlap=True) * self._num_ids + texts.word_ids
            lengths = (texts.word_ids > 0).sum(axis=1)
            for row, length in zip(codes.astype(smallest), lengths.tolist(), strict=True):
                self._codes.append(row[:length])
        self._unknown = vocabulary.as_unknown()
        self.longest = int(self.lengths.max(initial=1))

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def lengths(self) -> Indices:
        """`(rows,)`: the number of words of each row."""
        return self._codes.lengths

    def bags(self, batch: Indices, *, overlap: bool, dropped: NDArray[np.bool_] | None = None) -> Bags:
        """The batch of these rows. Words that are `dropped`, `(batch, longest)`, are read as unknown ones. Without
        `overlap`, it is as if no word occurred in two fields."""
        codes, lengths = self._codes.together(batch.tolist())
        traits, word_ids = np.divmod(codes.astype(np.int64), self._num_ids)
        rows = np.repeat(np.arange(len(batch)), lengths)
        places = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        if dropped is not None:
            word_ids = np.where(dropped[rows, places], self._unknown[word_ids], word_ids)
        traits = traits if overlap else traits % self._num_fields
        return as_bags(word_ids, traits, rows, places, self._num_fields, overlap=overlap)
