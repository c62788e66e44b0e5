"""From the labels of two sides to a comparison: worked out by hand."""

from collections import Counter
from collections.abc import Sequence

import pytest

from retort.errors import DataError
from retort.metrics.comparison import Labels, Systems, compare_systems, mcnemar_of, share_of_gains
from retort.metrics.scores import mean_scores
from retort.problems.classification import Classification
from retort.records.base import Label

PROBLEM = Classification(["a", "b"])
GOLDS = ["a", "a", "b", "b"]


def systems(*labels: Labels, golds: Sequence[Label] = GOLDS) -> Systems:
    return Systems(PROBLEM, ["accuracy", "macro_f1"], golds, labels)


def test_one_system_on_each_side() -> None:
    old, new = systems(["a", "b", None, "b"]), systems(["a", "a", "b", "a"])
    assert compare_systems(old, new, "accuracy", 200, 0).gain == pytest.approx(1 / 4)
    assert mcnemar_of(old, new) == (1, 2, 1.0)


def test_mcnemar_pools_the_pairs_of_systems() -> None:
    old, new = [["a", "a", "b", "b"], ["b", "b", "a", "a"]], [["a", "a", "b", "b"], ["a", "a", "b", "a"]]
    assert mcnemar_of(systems(*old), systems(*new)) == (0, 3, 0.25)
    # The other way round student 0 meets another one, so the disagreements are others.
    crossed = mcnemar_of(systems(*old), systems(*new[::-1]))
    assert (crossed.only_old, crossed.only_new) == (1, 4)


def test_scores_and_shares_are_of_the_same_rows() -> None:
    labels = [["a", "a", "b", "b"], ["a", "b", "b", "a"]]
    old, new = systems(["b", "b", "a", "a"]), systems(*labels)
    for metric, score in mean_scores(PROBLEM, ["accuracy", "macro_f1"], GOLDS, labels, 200, 0).items():
        assert new.score(metric, 200, 0) == score
    assert share_of_gains(old, new, "accuracy", 0.0, 200, 0) == 1.0
    assert 0 < share_of_gains(old, new, "accuracy", 0.75, 200, 0) < 1
    assert share_of_gains(old, new, "accuracy", 1.0, 200, 0) == 0.0


def test_each_label_is_read_once_however_many_metrics_compare() -> None:
    read = Counter[Label | None]()

    class Counting(Classification):
        def matches(self, gold: Label, predicted: Label | None) -> bool:
            read[predicted] += 1
            return super().matches(gold, predicted)

    old, new = (Systems(Counting(["a", "b"]), ["macro_f1"], GOLDS, [own]) for own in ("aabb", "abab"))
    for resamples in (100, 200):
        compare_systems(old, new, "macro_f1", resamples, 0)
        mcnemar_of(old, new)
    assert read == {"a": 4, "b": 4}


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no gold-labeled rows"):
        compare_systems(systems([], golds=[]), systems([], golds=[]), "accuracy", 200, 0)


def test_a_side_without_systems_is_refused() -> None:
    with pytest.raises(DataError, match="at least one system on each side"):
        compare_systems(systems(), systems(GOLDS), "accuracy", 200, 0)
