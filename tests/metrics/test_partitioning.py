"""A row's cell depends on nothing but its id and the seed; nobody labels what it was trained on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.data.partitions import Scheme, cell_of, folds_of, label_cells, train_cells

SCHEMES: tuple[Scheme, ...] = ("disjoint", "leave-one-out")


def test_cells_are_fixed_for_ever() -> None:
    # A change here would relabel every pool already paid for: bump the stages' versions with it.
    assert [cell_of(f"row-{number}", 4, seed=0) for number in range(8)] == [0, 2, 3, 0, 2, 2, 1, 2]


@given(st.text(), st.integers(2, 64), st.integers(0, 2**31 - 1))
def test_a_cell_is_in_range_and_duplicates_share_it(example_id: str, partitions: int, seed: int) -> None:
    cell = cell_of(example_id, partitions, seed)
    assert 0 <= cell < partitions
    assert cell_of(example_id, partitions, seed) == cell


def test_growth_moves_no_row() -> None:
    before = {example_id: cell_of(example_id, 3, 7) for example_id in map(str, range(100))}
    after = {example_id: cell_of(example_id, 3, 7) for example_id in map(str, range(1000))}
    assert before.items() <= after.items()


@pytest.mark.parametrize("partitions", [2, 3, 8])
def test_cells_are_balanced_and_seeds_independent(partitions: int) -> None:
    sizes = Counter(cell_of(f"id{number}", partitions, 0) for number in range(20_000))
    expected = 20_000 / partitions
    assert all(abs(sizes[cell] - expected) < 5 * expected**0.5 for cell in range(partitions))
    same = sum(cell_of(f"id{n}", partitions, 0) == cell_of(f"id{n}", partitions, 1) for n in range(20_000))
    assert abs(same - expected) < 5 * expected**0.5


def test_one_row_leaves_the_other_cells_empty() -> None:
    assert len({cell_of("only", 2, 0)}) == 1


@given(st.sampled_from(SCHEMES), st.integers(2, 64), st.data())
def test_nobody_labels_what_it_was_trained_on(scheme: Scheme, partitions: int, data: st.DataObject) -> None:
    student = data.draw(st.integers(0, partitions - 1))
    trained, labeled = set(train_cells(scheme, partitions, student)), set(label_cells(scheme, partitions, student))
    assert not trained & labeled
    assert trained | labeled == set(range(partitions))


@pytest.mark.parametrize(("scheme", "labelers"), [("disjoint", 3), ("leave-one-out", 1)])
def test_every_cell_is_labeled(scheme: Scheme, labelers: int) -> None:
    times = Counter(cell for student in range(4) for cell in label_cells(scheme, 4, student))
    assert times == dict.fromkeys(range(4), labelers)
    assert train_cells("disjoint", 4, 2) == (2,)
    assert train_cells("leave-one-out", 4, 2) == (0, 1, 3)


@given(st.lists(st.text(max_size=3), min_size=1, max_size=40), st.integers(2, 12), st.integers(0, 2**31 - 1))
def test_folds_hold_each_row_once_and_differ_in_size_by_at_most_one(ids: list[str], number: int, seed: int) -> None:
    folds = folds_of(ids, number, seed)
    assert sorted(row for fold in folds for row in fold) == list(range(len(ids)))
    sizes = list(map(len, folds))
    assert max(sizes) - min(sizes) <= 1
    assert len(folds) == min(number, len(ids))


def test_folds_are_shuffled_by_the_seed_and_a_function_of_the_ids() -> None:
    ids = [f"row-{number}" for number in range(8)]
    assert folds_of(ids, 3, seed=0) == [[1, 4, 5], [0, 6, 7], [2, 3]]
    assert folds_of(ids, 3, seed=0) != folds_of(ids, 3, seed=1)
    turned = folds_of(ids[::-1], 3, seed=0)
    assert [{ids[::-1][at] for at in fold} for fold in turned] == [
        {ids[at] for at in fold} for fold in folds_of(ids, 3, seed=0)
    ]
