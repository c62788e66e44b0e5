"""Near-duplicates are found within the pool and against the test rows, and what only looks alike is not."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.data.near_duplicates import THRESHOLD, find, indexed_share, is_drawn

LONG = "please play the newest album by the artist that i listened to last night on the way home from work"


def named(prefix: str, *texts: str) -> list[tuple[str, str]]:
    return [(f"{prefix}{number}", text) for number, text in enumerate(texts)]


def test_a_row_that_nearly_repeats_an_earlier_one() -> None:
    pool = named("p", LONG, "weather in rome", LONG.replace("home", "hone"), LONG.upper().replace(" ", "  "))
    found = find(pool, [], named("t", "something else entirely"))
    assert [(one.example_id, one.of_id) for one in found.within] == [("p2", "p0"), ("p3", "p0")]
    assert found.within[1].similarity == 1.0
    assert THRESHOLD <= found.within[0].similarity < 1
    assert found.leaked == []


def test_test_rows_that_are_in_the_pool_or_the_labeled_set() -> None:
    test = named("t", LONG, "book a table for two", "weather in oslo", LONG)
    found = find(named("p", LONG.replace("please", "do"), LONG), named("l", "Book a table for two"), test)
    assert {one.of_id: (one.example_id, one.similarity) for one in found.leaked} == {
        "t0": ("p1", 1.0),
        "t1": ("l0", 1.0),
        "t3": ("p1", 1.0),
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [("weather in rome", "weather in oslo"), ("yes", "no"), ("the film was good", "the film was awful"), ("a", "b")],
)
def test_short_texts_that_differ_in_a_word_are_no_duplicates(one: str, other: str) -> None:
    found = find(named("p", one), [], named("t", other))
    assert found == ([], [])


def test_rows_made_from_one_pattern_take_no_quadratic_time() -> None:
    """3,000 rows of one pattern, each different enough: 4.5 million pairs would take minutes."""
    pool = named("p", *(f"{LONG} {number:06d} {number * 7919:08d} {number * 104729:09d}" for number in range(3000)))
    found = find(pool, [], pool[:10])
    assert len(found.leaked) == 10
    assert all(one.similarity == 1.0 for one in found.leaked)


@given(st.lists(st.text(max_size=30), max_size=12))
def test_any_texts(texts: list[str]) -> None:
    """Equal texts are found whatever they hold: half of a surrogate pair, nothing but spaces, one letter."""
    found = find(named("p", *texts), [], named("t", *texts))
    assert len(found.leaked) == len(texts)
    assert len(found.within) >= len(texts) - len({" ".join(text.casefold().split()) for text in texts})


def test_a_very_long_text() -> None:
    found = find(named("p", "word " * 200_000), [], named("t", "word " * 200_000, "another"))
    assert [one.of_id for one in found.leaked] == ["t0"]


def test_of_a_large_pool_some_rows_are_compared_with_each_other_and_all_with_the_test_rows() -> None:
    chance = random.Random(0)
    texts = [" ".join("".join(chance.choices("abcdefghijklmnop", k=8)) for _ in range(12)) for _ in range(200)]
    pool = named("p", *(text for one in texts for text in (one, f"{one[:-1]}x")))
    test = named("t", *texts[:20], LONG, "another text altogether")
    whole, part = find(pool, [], test), find(pool, [], test, share=0.5)
    assert part.leaked == whole.leaked
    assert len(whole.leaked) == 20
    drawn = {example_id for example_id, _ in pool if is_drawn(example_id, 0.5)}
    assert 150 < len(drawn) < 250
    pairs = {(one.example_id, one.of_id) for one in whole.within}
    assert {(one.example_id, one.of_id) for one in part.within} == {pair for pair in pairs if drawn.issuperset(pair)}
    assert (indexed_share(99), indexed_share(100_000), indexed_share(1_000_000)) == (1.0, 1.0, 0.1)
