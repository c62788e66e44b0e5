import numpy as np
import pytest

from retort.errors import DataError
from retort.students.tiny.baselines import majority, smoothed, tfidf

GOLD = np.array([2, 0, 2, -1, 2])


def test_the_majority_knows_shares_only():
    np.testing.assert_allclose(majority(GOLD, 4), [0.25, 0, 0.75, 0])


def test_smoothed_labels_sum_to_one_and_a_missing_one_says_nothing():
    found = smoothed(GOLD, 4, 0.2)
    np.testing.assert_allclose(found[0], [0.05, 0.05, 0.85, 0.05])
    np.testing.assert_allclose(found[[0, 1, 2, 4]].sum(axis=1), 1)
    assert np.isnan(found[3]).all()


def test_tfidf_learns_words_and_gives_a_class_that_training_lacks_nothing():
    train = [["", word] for word in ("good film", "bad film", "good book", "nothing", "good good")]
    (found,) = tfidf(train, GOLD, [["", "good"], ["", "bad"]], 4)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0, 2] > found[1, 2]
    assert (found[:, [1, 3]] == 0).all()


def test_tfidf_keeps_fields_apart():
    train = [["yes", "no"], ["no", "yes"]] * 10
    (found,) = tfidf(train, np.array([0, 1] * 10), [["yes", "no"], ["no", "yes"]], 2)
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_without_labels_there_is_no_baseline():
    with pytest.raises(DataError, match="gold label"):
        majority(np.array([-1, -1]), 3)


def test_a_single_class_is_refused():
    with pytest.raises(DataError, match="class 1"):
        list(tfidf([["a"], ["b"]], np.array([1, 1]), [["a"]], 2))
