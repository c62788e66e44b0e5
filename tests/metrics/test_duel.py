"""From the labels of two sides to a comparison: worked out by hand."""

import pytest

from retort.errors import DataError
from retort.metrics.comparison import compare_systems
from retort.problems.classification import Classification

PROBLEM = Classification(["a", "b"])
GOLDS = ["a", "a", "b", "b"]


def test_one_system_on_each_side() -> None:
    result = compare_systems(PROBLEM, "accuracy", GOLDS, [["a", "b", None, "b"]], [["a", "a", "b", "a"]], 200, 0)
    assert result.comparison.gain == pytest.approx(1 / 4)
    assert result.mcnemar == (1, 2, 1.0)


def test_mcnemar_pools_the_pairs_of_systems() -> None:
    old, new = [["a", "a", "b", "b"], ["b", "b", "a", "a"]], [["a", "a", "b", "b"], ["a", "a", "b", "a"]]
    assert compare_systems(PROBLEM, "accuracy", GOLDS, old, new, 200, 0).mcnemar == (0, 3, 0.25)
    # The other way round student 0 meets another one, so the disagreements are others.
    crossed = compare_systems(PROBLEM, "accuracy", GOLDS, old, new[::-1], 200, 0).mcnemar
    assert (crossed.only_old, crossed.only_new) == (1, 4)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no gold-labeled rows"):
        compare_systems(PROBLEM, "accuracy", [], [[]], [[]], 200, 0)
