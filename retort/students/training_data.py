"""What a training learns: rows as tensors of a model, and what is minimised on them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.students.batching import Indices

Inputs = dict[str, Tensor]
"""By name; what the objective of some rows is computed from."""

IGNORED = -100
"""As a target: none. It is what torch's cross-entropy leaves out."""


class TrainingData(Protocol):
    """Rows of one training."""

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        """All rows, each once, cut into steps of at most so many tokens, padding included (one row at least)."""
        ...

    def units(self, rows: Indices) -> int:
        """Over how many units, or target tokens, the objective of these rows is a sum."""
        ...

    def tokens(self, rows: Indices) -> tuple[int, int]:
        """(real tokens, computed tokens) of these rows."""
        ...

    def loss(self, rows: Indices) -> Tensor:
        """The objective summed over the units of these rows, a scalar. It is called under autocast."""
        ...


class PaddedTrainingData(ABC):
    """Lessons as tensors whose shapes recur, so that a GPU's work on them can be recorded once for each shape."""

    model: torch.nn.Module

    @property
    def is_recordable(self) -> bool:
        """Whether the objective computes the same things for the same shapes, whatever the values are."""
        return True

    @abstractmethod
    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """On the host, padded to lengths of a `multiple`."""

    @abstractmethod
    def objective(self, inputs: Inputs) -> Tensor:
        """The loss, see `TrainingData`, of what `inputs` holds, which lies on the model's device."""

    def loss(self, rows: Indices) -> Tensor:
        """See `TrainingData`."""
        device = next(self.model.parameters()).device
        return self.objective({name: tensor.to(device) for name, tensor in self.inputs(rows, 1).items()})


def padded(rows: Sequence[NDArray[Any]], value: float, multiple: int = 1) -> Tensor:
    """`(rows, longest, ...)` of rows `(length, ...)`, filled up on the right, to a length of a `multiple`."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    whole = np.full((len(rows), longest, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return torch.from_numpy(whole)


def padded_with_mask(rows: Sequence[NDArray[Any]], value: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, `(rows, length)`, see `padded`."""
    mask = padded([np.ones(len(row), dtype=np.int64) for row in rows], 0, multiple)
    return padded(rows, value, multiple).long(), mask
