"""What stages see of a student, whatever its kind."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.problems.base import Problem, is_put_right
from retort.records.base import Label, ParseFailure

Progress = Callable[[int, int, str], None]
"""done, total, what: `120, 480, "loss 0.31"`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    label: Label
    confidence: float
    """Geometric mean over units (or tokens, where the student writes text) of the chosen one's probability."""
    probabilities: NDArray[np.float32]
    """`(units, classes)`; no units where the student writes text."""
    is_repaired: bool = False
    """Whether what the student said was no label before it was put right."""


def decided(problem: Problem, text: str, probabilities: NDArray[np.float32]) -> Prediction:
    """The best label by `(units, classes)` probabilities."""
    scores = probabilities.astype(np.float64)
    label, confidence = problem.decide(text, scores)
    return Prediction(label, confidence, probabilities, is_put_right(problem, text, label, scores))


Outcome = Prediction | ParseFailure
"""What a student says of a text. Only one that writes text can write what is no label."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """A teacher's completion in tokens, and what else it could have written at each of them."""

    token_ids: NDArray[np.int32]
    """`(tokens,)`, as written, with the token that ended it where one did."""
    ids: NDArray[np.int32]
    """`(tokens, k)`: the likeliest."""
    logprobs: NDArray[np.float32]
    """`(tokens, k)`: their natural log-probabilities at temperature 1; -inf pads a list that is shorter than k."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    text: str
    label: Label
    probabilities: NDArray[np.float32] | None = None
    """`(units, classes)` where the label is soft."""
    top: TopTokens | None = None
    """The completion that the label was read from, in tokens of the student's tokenizer."""


@dataclass(slots=True)
class History:
    """What training went through: one entry for about each percent."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean objective over units since the entry before."""
    learning_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0
    examples_per_second: float = 0.0
    tokens: int = 0
    """Real tokens seen, all epochs."""
    padding_share: float = 0.0
    """Share of computed tokens that were padding."""
    held_out_steps: list[int] = field(default_factory=list)
    """After which the loss on rows that are not trained on was looked at; none where epochs were fixed in advance."""
    held_out_losses: list[float] = field(default_factory=list)
    """Mean objective over their units."""
    kept_step: int | None = None
    """After which the weights were the best, and are kept; None: the last step's."""
    ended_by: Literal["epochs", "patience"] = "epochs"
    """Why it ended where it did: all epochs came, or too many had come without a lower loss on the held-out rows."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    history: History
    counts: dict[str, int]
    """Rows that could not be learnt as they are: `cut`, ..."""


class Checkpoint(Protocol):
    """Where a training's state is kept, in case it dies."""

    def is_due(self) -> bool: ...

    def save(self, tensors: dict[str, Tensor], state: str) -> None:
        """In the place of what was saved before, all or nothing. `state` is JSON."""
        ...

    def load(self) -> tuple[dict[str, Tensor], str] | None:
        """What was saved last; None where nothing was, or nothing that can be read."""
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
    def num_parameters(self) -> int: ...

    def continue_from(self, folder: Path) -> bool:
        """Take the weights of the trained student in `folder`; whether its head was taken too.

        Raises ConfigError where the two do not have the same architecture and vocabulary.
        """
        ...

    def train(
        self,
        rows: Sequence[TrainingRow],
        training: TrainingConfig,
        *,
        seed: int,
        device: Device,
        micro_batches: int = 1,
        checkpoint: Checkpoint | None = None,
        progress: Progress = ...,
        held_out: Sequence[TrainingRow] = (),
    ) -> TrainingResult:
        """In place, and deterministically on one machine. `micro_batches`: parts of a step that fit memory.
        `held_out`: rows that are not learnt, and by whose loss the training ends, where it has `stopping`."""
        ...

    def save(self, folder: Path) -> None:
        """As a folder that transformers loads too."""
        ...
