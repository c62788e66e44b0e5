"""Selection of demonstrations from the labeled rows."""

import random

from hypothesis import given
from hypothesis import strategies as st

from retort.records.base import Example
from retort.teachers.demonstrations import choose_demonstrations


def examples(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(f"row-{number}", text, label) for number, (text, label) in enumerate(pairs)]


def distance(one: Example, other: Example) -> float:
    left, right = set(one.text.split()), set(other.text.split())
    return 1 - len(left & right) / len(left | right) if left | right else 0.0


WEATHER = examples(
    ("what is the weather in rome", "weather"),
    ("what is the weather in paris", "weather"),
    ("what is the weather", "weather"),
    ("play let it be", "music"),
    ("play yellow", "music"),
    ("rate this book five stars", "book"),
)


def test_it_starts_in_the_middle_and_goes_to_the_farthest_of_each_label_first() -> None:
    chosen = choose_demonstrations(WEATHER, 4, "diverse")
    assert [example.text for example in chosen] == [
        "what is the weather in paris",  # as close to all as the one in rome, and before it in the alphabet
        "play let it be",
        "rate this book five stars",
        "play yellow",
    ]


def test_first_all_none_and_more_than_there_are() -> None:
    assert choose_demonstrations(WEATHER, 2, "first") == tuple(WEATHER[:2])
    for how_many in ("all", 6, 50):
        assert choose_demonstrations(WEATHER, how_many, "diverse") == tuple(WEATHER)  # type: ignore[arg-type]
    assert choose_demonstrations(WEATHER, 0, "diverse") == ()
    assert choose_demonstrations([], 3, "diverse") == choose_demonstrations([], "all", "first") == ()
    assert choose_demonstrations(WEATHER[:1], 1, "diverse") == (WEATHER[0],)


def test_equal_rows_come_last() -> None:
    rows = examples(("a b", "x"), ("a b", "x"), ("a b", "x"), ("a c", "x"), ("d", "x"))
    assert [example.text for example in choose_demonstrations(rows, 3, "diverse")] == ["a b", "d", "a c"]


def test_texts_without_words() -> None:
    rows = examples(("", "x"), (" ", "x"), ("a", "y"))
    assert len(choose_demonstrations(rows, 2, "diverse")) == 2


words = st.lists(st.sampled_from("abcdefgh"), max_size=5).map(" ".join)
rows = st.lists(st.tuples(words, st.sampled_from("xyz")), min_size=2, max_size=25)


@given(rows, st.data(), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(pairs: list[tuple[str, str]], data: object, shuffler: object) -> None:
    how_many = data.draw(st.integers(1, len(pairs) - 1))  # type: ignore[attr-defined]
    given_rows = examples(*pairs)
    chosen = choose_demonstrations(given_rows, how_many, "diverse")
    shuffled = given_rows.copy()
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose_demonstrations(shuffled, how_many, "diverse") == chosen
    assert len({example.example_id for example in chosen}) == how_many
    labels = {label for _, label in pairs}
    assert len({example.label for example in chosen[: len(labels)]}) == min(how_many, len(labels))


@given(st.lists(words, min_size=3, max_size=25, unique=True), st.data())
def test_with_one_label_it_is_a_farthest_first_traversal(texts: list[str], data: object) -> None:
    how_many = data.draw(st.integers(1, len(texts) - 1))  # type: ignore[attr-defined]
    pool = examples(*((text, "x") for text in texts))
    chosen = choose_demonstrations(pool, how_many, "diverse")
    spread = [sum(distance(one, other) for other in pool) for one in pool]
    assert abs(sum(distance(chosen[0], other) for other in pool) - min(spread)) < 1e-9
    for count in range(1, how_many):
        shown = chosen[:count]
        gaps = [min(distance(one, other) for other in shown) for one in pool if one not in shown]
        assert abs(min(distance(chosen[count], other) for other in shown) - max(gaps)) < 1e-9


def test_five_thousand_rows() -> None:
    generator = random.Random(0)
    vocabulary = [f"word{number}" for number in range(3000)]
    weights = [1 / (rank + 1) for rank in range(3000)]
    pool = examples(*((" ".join(generator.choices(vocabulary, weights, k=12)), "xyz"[n % 3]) for n in range(5000)))
    assert len({chosen.example_id for chosen in choose_demonstrations(pool, 50, "diverse")}) == 50
