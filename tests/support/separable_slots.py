"""Parses that any student can learn: each word has one tag, and the first word tells the intent."""

import numpy as np

from retort.problems.slots import Slots, encode
from retort.students.base import TrainingRow

SLOTS = Slots({"PLAY": ["ARTIST"], "ASK": ["CITY"]})
_TAGS = {"play": "O", "by": "O", "weather": "O", "great": "B-ARTIST", "film": "I-ARTIST", "dull": "B-CITY"}


def separable_rows(count: int, most_words: int) -> list[TrainingRow]:
    """Rows of 2 to `most_words` words, always the same."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        first, words = ("play", ["great", "film"]) if number % 2 else ("weather", ["dull", "by"])
        chosen = [first, *generator.choice(words, size=int(generator.integers(1, most_words)))]
        label = encode("PLAY" if number % 2 else "ASK", [_TAGS[word] for word in chosen])
        made.append(TrainingRow(" ".join(chosen), label))
    return made
