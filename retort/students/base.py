"""The interface of all kinds of students."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.problems.base import Problem, is_put_right
from retort.records.base import Label, ParseFailure, Progress

"""Called with (done, total, note), for example `120, 480, "loss 0.31"`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    label: Label
    confidence: float
    """In [0, 1]: geometric mean of the chosen classes' probabilities over units (over tokens if text is generated)."""
    probabilities: NDArray[np.float32]
    """`(units, classes)`, each row summing to 1; `(0, 0)` if the student generates text."""
    is_repaired: bool = False
    """Whether the raw output was not a legal label and had to be repaired."""


def decided(problem: Problem, text: str, probabilities: NDArray[np.float32]) -> Prediction:
    """The most probable legal label, from `(units, classes)` probabilities."""
    scores = probabilities.astype(np.float64)
    label, confidence = problem.decide(text, scores)
    return Prediction(label, confidence, probabilities, is_put_right(problem, text, label, scores))


Outcome = Prediction | ParseFailure
"""A student's answer for one text. Only students that generate text can fail."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """A teacher's completion as tokens, with the most likely alternatives at each position."""

    token_ids: NDArray[np.int32]
    """`(tokens,)`: the completion, including its end token if it had one."""
    ids: NDArray[np.int32]
    """`(tokens, k)`: the most likely token ids at each position."""
    logprobs: NDArray[np.float32]
    """`(tokens, k)`: their natural log-probabilities at temperature 1; -inf pads lists shorter than k."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    text: str
    label: Label
    probabilities: NDArray[np.float32] | None = None
    """`(units, classes)`, each row summing to 1: the soft label; None for a hard one."""
    top: TopTokens | None = None
    """The completion that the label was parsed from, in the student's own tokens."""
    rationale: str | None = None
    """Why the label is what it is, if the student is to write that too."""


class Rows(Protocol):
    """Rows that can be gone through more than once, as a list can. Those of a large pool are read from disk each time,
    so whoever trains on them does not hold them."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[TrainingRow]: ...


@dataclass(slots=True)
class History:
    """The course of a training, with about one entry per percent of its steps."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean objective per unit since the previous entry."""
    learning_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0
    examples_per_second: float = 0.0
    tokens: int = 0
    """Tokens processed in all epochs, padding excluded."""
    padding_share: float = 0.0
    """Share of the computed tokens that were padding, in [0, 1]."""
    held_out_steps: list[int] = field(default_factory=list)
    """Steps after which the held-out loss was measured; empty without early stopping."""
    held_out_losses: list[float] = field(default_factory=list)
    """Mean objective per held-out unit at each of these steps."""
    kept_step: int | None = None
    """The step whose weights were best and are kept; None: the last one."""
    ended_by: Literal["epochs", "patience"] = "epochs"
    """epochs: all epochs were run. patience: too many epochs passed without a lower held-out loss."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    history: History
    counts: dict[str, int]
    """Rows that were changed before training, by reason: `cut`, ..."""


class Checkpoint(Protocol):
    """Storage for the state of an interrupted training."""

    def is_due(self) -> bool: ...

    def save(self, tensors: dict[str, Tensor], state: str) -> None:
        """Atomically replaces what was saved before. `state` is JSON."""
        ...

    def load(self) -> tuple[dict[str, Tensor], str] | None:
        """The last saved state; None if there is none or it cannot be read."""
        ...


class Predictor(Protocol):
    """A trained student at work."""

    def predict(
        self,
        texts: Iterable[str],
        *,
        device: Device,
        total: int,
        batch_tokens: int = ...,
        progress: Progress = ...,
    ) -> Iterator[Outcome]:
        """In the order of `texts`, `total` of them, streamed."""
        ...


class Student(Predictor, Protocol):
    """One that can be trained."""

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def num_parameters(self) -> int: ...

    def continue_from(self, folder: Path) -> bool:
        """Loads the weights of the trained student in `folder`. Returns whether its head was loaded too.

        Raises ConfigError if the two differ in architecture or vocabulary.
        """
        ...

    def train(
        self,
        rows: Rows,
        training: TrainingConfig,
        *,
        seed: int,
        device: Device,
        micro_batches: int = 1,
        checkpoint: Checkpoint | None = None,
        progress: Progress = ...,
        held_out: Rows = (),
    ) -> TrainingResult:
        """Trains in place, deterministically on one machine.

        `micro_batches` is the number of parts that a step starts out split into to fit memory. `held_out` rows are not
        trained on; with `training.stopping`, their loss ends the training early.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes model and tokenizer in the format of transformers' `from_pretrained`."""
        ...
