"""Two-sample tests of drift."""

import random
from collections import Counter

import pytest

from retort.metrics.drift import of_categories, of_numbers, of_texts

WORDS = [f"word{number}" for number in range(16)]


def texts(count: int, words: list[str], seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=6)) for _ in range(count)]


def test_numbers() -> None:
    same = of_numbers(range(1000), range(1000))
    assert (same.size, same.p_value) == (0.0, pytest.approx(1.0))
    moved = of_numbers(range(1000), range(500, 1500))
    assert moved.size == pytest.approx(0.5)
    assert moved.p_value < 1e-9


def test_categories() -> None:
    moved = of_categories(Counter(a=900, b=100), Counter(a=500, b=500))
    assert moved.size == pytest.approx(0.4)
    assert moved.p_value < 1e-9
    assert of_categories(Counter(a=900, b=100), Counter(a=450, b=50)).p_value == pytest.approx(1.0, abs=0.05)


def test_many_rare_categories_are_no_drift() -> None:
    """Names that occur once on either side differ for certain, and say nothing."""
    before = Counter({f"old{number}": 1 for number in range(50)}, common=500)
    after = Counter({f"new{number}": 1 for number in range(50)}, common=500)
    assert of_categories(before, after).p_value > 0.5
    assert of_categories(Counter(a=3), Counter(b=3)).p_value == 1.0


def test_texts_of_the_same_kind_are_not_told_apart() -> None:
    sure = [of_texts(texts(300, WORDS, 2 * seed), texts(300, WORDS, 2 * seed + 1)).p_value < 0.01 for seed in range(8)]
    assert sum(sure) <= 1


def test_texts_with_new_words() -> None:
    effect = of_texts(texts(300, WORDS, 0), texts(300, [*WORDS[:8], "alarm", "timer", "remind"], 1))
    assert effect.size > 0.5
    assert effect.p_value < 1e-9
