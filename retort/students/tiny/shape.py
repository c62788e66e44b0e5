"""What a tiny student is made of and how it is trained. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Weights = Mapping[str, Array]
"""Of one student, by name; see `network`."""
Pooling = Literal["mean", "mean-and-max"]


@dataclass(frozen=True, slots=True)
class TinyShape:
    """All of it changes the student, so all of it belongs in its key."""

    fields: tuple[str, ...] = ("text",)
    """Names of a row's texts, in order."""
    vocabulary_size: int = 1200
    """Rows of the embedding at most, marks and hashed buckets included."""
    embedding_size: int = 24
    hidden_size: int = 32
    max_words: int = 48
    """Words read of each field; the rest is cut off."""
    overlap: bool = True
    """Whether each word says in which other fields it occurs, too. Without effect where there is one field."""
    pooling: Pooling = "mean-and-max"
    """What a row is of its words: their mean, weighted by attention, and beside it the greatest of each number."""


@dataclass(frozen=True, slots=True)
class TinyTraining:
    epochs: int = 40
    """At most; each student keeps the weights of its best epoch on the dev rows."""
    patience: int = 8
    """Epochs without a better dev accuracy after which a student stops."""
    batch_rows: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    word_dropout: float = 0.1
    """Share of words that are read as unknown in training."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One student of those trained side by side."""

    seed: int
    """Of the initial weights, the order of batches and the words dropped; students of equal seed share all three."""
    soft_weight: float = 0.0
    """lambda: the weight of the teacher's part; 0 is training on gold labels alone."""
    distillation_temperature: float = 1.0
    hard: bool = True
    """Whether gold labels count; without, it learns from the teacher's probabilities alone."""
    soft_weight_end: float | None = None
    """lambda in the last epoch, reached in equal steps; None: it stays."""
    only_where_right: bool = False
    """The teacher's part only for rows where its most probable class is the gold one, or that have no gold label."""
    rows: tuple[int, ...] | None = None
    """Indices of the training rows that it sees; None: all."""


@dataclass(frozen=True, slots=True)
class TinyTexts:
    """Encoded rows."""

    word_ids: NDArray[np.int64]
    """`(rows, length)`; 0 is padding."""
    field_ids: NDArray[np.int64]
    """`(rows, length)`: the field that each word stands in, 0 in padding."""

    def __len__(self) -> int:
        return len(self.word_ids)


@dataclass(frozen=True, slots=True)
class TinyRows:
    texts: TinyTexts
    gold: NDArray[np.int64]
    """`(rows,)`: class indices, -1 without."""
    probabilities: NDArray[np.float64] | None = None
    """`(rows, classes)`: the teacher's, of the same rows in the same order."""


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    setting: Setting
    weights: Weights
    """Of the best epoch."""
    epoch: int
    """The best one, from 1."""
    dev_accuracy: float
    dev_loss: float
    """Mean cross-entropy with the dev rows' gold labels, in nats."""
    history: Sequence[tuple[float, float]]
    """Dev accuracy and loss after each epoch until it stopped."""
