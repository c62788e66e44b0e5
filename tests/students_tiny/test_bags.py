"""Rows on disk, which become the same bags as in memory."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from retort.errors import DataError
from retort.students import ragged
from retort.students.tiny import bags as module
from retort.students.tiny import training
from retort.students.tiny.bags import EncodedRows, as_bags, word_traits
from retort.students.tiny.shape import TinyShape, TinyTraining
from retort.students.tiny.vocabulary import Vocabulary


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("chunk_bytes", "most_in_table"), [(2**24, 2**18), (1, 0)])
def test_bags_are_those_of_the_rows_encoded_at_once(lesson, monkeypatch, chunk_bytes, most_in_table, overlap):
    """From a file and from memory; kinds told apart by a table and by sorting; with and without dropped words."""
    whole = lesson.vocabulary.encode(lesson.fields)
    monkeypatch.setattr(ragged, "CHUNK_BYTES", chunk_bytes)
    stored = EncodedRows(iter(lesson.fields), lesson.vocabulary)
    assert (len(stored), stored.longest) == whole.word_ids.shape
    assert stored.lengths.tolist() == (whole.word_ids > 0).sum(axis=1).tolist()
    batch = np.random.default_rng(0).permutation(300)[:40]
    dropped = np.random.default_rng(1).random((40, stored.longest)) < 0.3
    traits = word_traits(whole, 2, overlap=overlap)[batch]
    unknown = lesson.vocabulary.as_unknown()
    ids_of = whole.word_ids[batch]
    for drop, ids in ((None, ids_of), (dropped, np.where(dropped, unknown[ids_of], ids_of))):
        words = np.nonzero(ids)
        expected = as_bags(ids[words], traits[words], *words, 2, overlap=overlap)
        monkeypatch.setattr(module, "_MOST_IN_TABLE", most_in_table)
        found = stored.bags(batch, overlap=overlap, dropped=drop)
        monkeypatch.undo()
        for one, other in zip(found.parts, expected.parts, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_row_with_another_number_of_fields_is_refused(lesson):
    with pytest.raises(DataError, match="1 texts"):
        EncodedRows([["a", "b"], ["a"]], lesson.vocabulary)


def test_neither_rows_nor_an_epochs_dropped_words_are_in_memory(monkeypatch):
    """20,000 rows of 50 words, which can be read once."""
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 2**16)
    count, shape = 20_000, TinyShape(fields=("answer",), vocabulary_size=100, max_words=60)

    def rows() -> Iterator[list[str]]:
        return ([f"word{number % 7} " * 50] for number in range(count))

    vocabulary = Vocabulary.fit(rows(), shape)
    tracemalloc.start()
    encoded = EncodedRows(rows(), vocabulary)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    batches = training._batches(encoded, 0, None, TinyTraining(), 0)
    first, _ = next(batches)
    epoch_held, epoch_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 12 * count, "where each row begins, and none of its words"
    assert peak < 100 * count + 2**22, "those that are encoded together"
    assert epoch_held < 20 * count, "its place in the epoch too; which words are dropped would be 51 bytes"
    assert epoch_peak < 64 * count
    assert sorted(np.concatenate([first, *(one for one, _ in batches)])) == list(range(count))
