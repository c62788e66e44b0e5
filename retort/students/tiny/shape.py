"""The settings and data of tiny students. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from retort.students.tiny.bags import EncodedRows

Array = NDArray[np.float32]
Weights = Mapping[str, Array]
"""One student's weights by name; see `network.layout`."""
Pooling = Literal["mean", "mean-and-max"]


@dataclass(frozen=True, slots=True)
class TinyShape:
    """The architecture. Every field changes the student, so every field belongs in its key."""

    fields: tuple[str, ...] = ("text",)
    """Names of a row's texts, in order."""
    vocabulary_size: int = 1200
    """Maximum number of embeddings, including field marks and hash buckets."""
    embedding_size: int = 24
    hidden_size: int = 32
    max_words: int = 48
    """Maximum number of words of each field; the rest is cut off."""
    overlap: bool = True
    """Whether a word's vector includes the other fields in which it occurs. No effect with a single field."""
    pooling: Pooling = "mean-and-max"
    """How words are pooled: attention-weighted mean, alone or concatenated with the elementwise maximum."""


@dataclass(frozen=True, slots=True)
class TinyTraining:
    epochs: int = 40
    """Maximum number of epochs; each student keeps the weights of its best epoch on the dev rows."""
    patience: int = 8
    """Number of epochs without improvement on the dev rows after which a student stops."""
    batch_rows: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    word_dropout: float = 0.1
    """Share of words that are replaced by their hash bucket in training."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings of one student among those trained together."""

    seed: int
    """Seeds initial weights, batch order and word dropout; students with the same seed share all three."""
    soft_weight: float = 0.0
    """lambda >= 0, the weight of the teacher's term; 0 trains on gold labels alone."""
    distillation_temperature: float = 1.0
    hard: bool = True
    """Whether gold labels are used; False trains on the teacher's probabilities alone."""
    soft_weight_end: float | None = None
    """lambda in the last epoch, reached linearly; None: constant."""
    only_where_right: bool = False
    """Limits the teacher's term to rows where its most probable class is gold, or that have no gold label."""
    rows: tuple[int, ...] | None = None
    """Indices of the student's training rows; None: all."""


@dataclass(frozen=True, slots=True)
class TinyTexts:
    """A few encoded rows; see `bags.EncodedRows` for any number."""

    word_ids: NDArray[np.int64]
    """`(rows, length)`: word ids, 0 for padding."""
    field_ids: NDArray[np.int64]
    """`(rows, length)`: index of each word's field, 0 for padding."""

    def __len__(self) -> int:
        return len(self.word_ids)


@dataclass(frozen=True, slots=True)
class TinyRows:
    texts: "EncodedRows"
    gold: NDArray[np.int32]
    """`(rows,)`: class indices, -1 for rows without a label."""
    probabilities: NDArray[np.float32] | None = None
    """`(rows, classes)`: the teacher's probabilities, NaN for rows without any; None without a teacher."""


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    setting: Setting
    weights: Weights
    """The weights of the best epoch."""
    epoch: int
    """The best epoch, counted from 1."""
    dev_accuracy: float
    dev_loss: float
    """Mean cross-entropy on the dev rows, in nats."""
    history: Sequence[tuple[float, float]]
    """(Dev accuracy, dev loss) after each epoch until the student stopped."""
