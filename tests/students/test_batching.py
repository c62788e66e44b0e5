"""Batches hold every row once and no more tokens than they may."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retort.students.batching import Indices, packed_batches, token_batches

lengths_of_rows = st.lists(st.integers(1, 60), max_size=80)
budgets = st.integers(8, 200)


def cut(lengths: Sequence[int], budget: int, seed: int | None) -> list[Indices]:
    generator = None if seed is None else np.random.default_rng(seed)
    return token_batches(np.array(lengths, dtype=np.int64), budget, generator)


@given(lengths_of_rows, budgets, st.none() | st.integers(0, 5))
def test_every_row_is_in_one_batch(lengths: list[int], budget: int, seed: int | None) -> None:
    batches = cut(lengths, budget, seed)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)


@given(lengths_of_rows, budgets, st.none() | st.integers(0, 5))
def test_a_batch_keeps_its_budget_padding_included(lengths: list[int], budget: int, seed: int | None) -> None:
    for batch in cut(lengths, budget, seed):
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(lengths_of_rows, budgets, st.none() | st.integers(0, 5))
def test_batches_hold_neighbours_in_length(lengths: list[int], budget: int, seed: int | None) -> None:
    spans = sorted((min(ls), max(ls)) for ls in ([lengths[i] for i in b] for b in cut(lengths, budget, seed)))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@given(lengths_of_rows, budgets, st.integers(0, 5))
def test_the_seed_decides_the_order(lengths: list[int], budget: int, seed: int) -> None:
    once, again = cut(lengths, budget, seed), cut(lengths, budget, seed)
    assert [batch.tolist() for batch in once] == [batch.tolist() for batch in again]


@given(lengths_of_rows, budgets)
def test_without_a_generator_the_longest_come_first(lengths: list[int], budget: int) -> None:
    order = [lengths[index] for batch in cut(lengths, budget, None) for index in batch]
    assert order == sorted(lengths, reverse=True)


def test_epochs_of_one_generator_differ() -> None:
    generator = np.random.default_rng(0)
    lengths = np.full(64, 10)
    first, second = (np.concatenate(token_batches(lengths, 80, generator)).tolist() for _ in range(2))
    assert first != second


def greedy(lengths: Sequence[int], budget: int, order: Sequence[int], *, padded: bool) -> list[list[int]]:
    """Row by row, as one would write it down."""
    batches: list[list[int]] = [[]]
    for index in order:
        members = [lengths[one] for one in (*batches[-1], index)]
        cost = len(members) * max(members) if padded else sum(members)
        if batches[-1] and cost > budget:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]


@given(lengths_of_rows, budgets)
def test_batches_are_those_of_a_loop_over_the_rows(lengths: list[int], budget: int) -> None:
    found = [batch.tolist() for batch in cut(lengths, budget, None)]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    assert found == greedy(lengths, budget, order, padded=True)
    packed = packed_batches(np.array(lengths, dtype=np.int64), budget, np.random.default_rng(3))
    shuffled = np.random.default_rng(3).permutation(len(lengths)).tolist()
    assert [batch.tolist() for batch in packed] == greedy(lengths, budget, shuffled, padded=False)
