"""Answers that are right where they repeat the reference's noun: nothing that can be told from an answer alone."""

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from retort.students.tiny.bags import EncodedRows
from retort.students.tiny.shape import Setting, TinyRows, TinyShape, TinyTraining, TrainedStudent
from retort.students.tiny.training import train_students
from retort.students.tiny.vocabulary import Vocabulary

NOUNS = ["water", "salt", "sand", "iron", "light", "heat", "sound", "seed", "leaf", "rock"]
CLASSES = ("wrong", "right")


@dataclass(frozen=True)
class Lesson:
    shape: TinyShape
    training: TinyTraining
    vocabulary: Vocabulary
    fields: list[list[str]]
    data: TinyRows
    dev_fields: list[list[str]]
    dev: TinyRows

    def train(self, *settings: Setting, data: TinyRows | None = None, **training: float) -> list[TrainedStudent]:
        given = replace(self.training, **training)
        return train_students(data or self.data, self.dev, settings, self.vocabulary, self.shape, given, num_classes=2)


@pytest.fixture(scope="session")
def lesson() -> Lesson:
    shape = TinyShape(fields=("reference", "answer"), vocabulary_size=100, embedding_size=8, hidden_size=8)
    fields, gold = answers(300, seed=1)
    dev_fields, dev_gold = answers(90, seed=2)
    vocabulary = Vocabulary.fit(fields, shape)
    # A teacher that is sure of the gold label, but for each seventh row, where it is as sure of the other.
    distilled = np.where(np.arange(300) % 7 == 0, 1 - gold, gold)
    teacher = np.where(np.eye(2)[distilled] == 1, 0.9, 0.1)
    data = TinyRows(EncodedRows(fields, vocabulary), gold, teacher)
    dev = TinyRows(EncodedRows(dev_fields, vocabulary), dev_gold)
    training = TinyTraining(epochs=4, batch_rows=16, learning_rate=0.02)
    return Lesson(shape, training, vocabulary, fields, data, dev_fields, dev)


def answers(count: int, seed: int) -> tuple[list[list[str]], np.ndarray]:
    draw = random.Random(seed)
    rows, gold = [], []
    for _ in range(count):
        noun, other = draw.sample(NOUNS, 2)
        is_right = draw.random() < 0.5
        padding = " ".join(draw.choices(["it", "was", "very", "much", "the"], k=draw.randrange(8)))
        rows.append([f"It is the {noun}.", f"{padding} {noun if is_right else other}"])
        gold.append(int(is_right))
    return rows, np.array(gold)
