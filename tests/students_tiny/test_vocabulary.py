import zlib
from dataclasses import asdict

import numpy as np
import pytest

from retort.errors import ConfigError, DataError
from retort.students.tiny.shape import TinyShape
from retort.students.tiny.vocabulary import Vocabulary

SHAPE = TinyShape(fields=("reference", "answer"), vocabulary_size=32, max_words=3)
TRAIN = [["The water evaporates", "water"], ["Salt, the salt!", "evaporation"], ["once", ""]]


def test_the_table_holds_what_occurs_twice_most_frequent_first_and_cut_to_stems():
    vocabulary = Vocabulary.fit(TRAIN, SHAPE)
    assert vocabulary.words == ("evapor", "salt", "the", "water")
    assert vocabulary.size == 1 + 2 + 4 + 4


def test_numbers_of_words_marks_and_padding():
    vocabulary = Vocabulary.fit(TRAIN, SHAPE)
    texts = vocabulary.encode([["the WATER", "evaporated: salt"], ["", ""]])
    assert texts.word_ids.tolist() == [[1, 9, 10, 2, 7, 8], [1, 2, 0, 0, 0, 0]]
    assert texts.field_ids.tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0]]


def test_a_word_that_training_lacks_or_has_once_is_read_by_its_bucket():
    vocabulary = Vocabulary.fit(TRAIN, SHAPE)
    for word in ("once", "überall", "1234567"):
        expected = 3 + zlib.crc32(word[:6].encode()) % 4
        assert vocabulary.encode([[word, ""]]).word_ids[0].tolist() == [1, expected, 2]


def test_what_numbers_would_be_without_the_table():
    vocabulary = Vocabulary.fit(TRAIN, SHAPE)
    unknown = vocabulary.as_unknown()
    assert unknown[:7].tolist() == list(range(7))  # padding, marks and buckets are no words
    assert unknown[8] == 3 + zlib.crc32(b"salt") % 4


def test_a_long_field_is_cut_and_the_next_one_is_not():
    vocabulary = Vocabulary.fit(TRAIN, SHAPE)
    (ids,) = vocabulary.encode([["salt salt salt salt salt", "water"]]).word_ids
    assert ids.tolist() == [1, 8, 8, 8, 2, 10]


def test_the_table_never_outgrows_the_shape():
    rows = [[f"word{n:02}", f"word{n:02}"] for n in range(99)]
    vocabulary = Vocabulary.fit(rows, TinyShape(fields=("a", "b"), vocabulary_size=64))
    assert vocabulary.size == 64
    assert vocabulary.words[0] == "word00"


def test_it_survives_as_plain_values():
    vocabulary = Vocabulary.fit(TRAIN, SHAPE)
    vocabulary.encode(TRAIN)
    kept = asdict(vocabulary)
    assert set(kept) == {"fields", "buckets", "words", "max_words"}
    again = Vocabulary(**kept)
    np.testing.assert_array_equal(again.encode(TRAIN).word_ids, vocabulary.encode(TRAIN).word_ids)


def test_no_rows_are_no_rows():
    assert len(Vocabulary.fit(TRAIN, SHAPE).encode([])) == 0


@pytest.mark.parametrize("row", [["one"], ["one", "two", "three"], "ab"])
def test_a_row_with_other_fields_is_refused(row):
    with pytest.raises(DataError, match="one for each of: reference, answer"):
        Vocabulary.fit(TRAIN, SHAPE).encode([row])


def test_a_table_without_room_is_refused():
    with pytest.raises(ConfigError, match="vocabulary_size = 6"):
        Vocabulary.fit(TRAIN, TinyShape(fields=("reference", "answer"), vocabulary_size=6))
