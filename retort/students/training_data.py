"""Training data: rows as a model's input tensors, and the objective that is minimized on them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.models.device import Device
from retort.students.batching import Indices

Inputs = dict[str, Tensor]
"""Tensors by name, from which the objective of some rows is computed."""

IGNORED = -100
"""A target of no class, which torch's cross-entropy ignores."""


class TrainingData(Protocol):
    """The rows of one training."""

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        """One epoch: every row once, in batches of at most `budget_tokens`, padding included (at least one row)."""
        ...

    def units(self, rows: Indices) -> float:
        """Number of units, or target tokens, that the objective of these rows sums over, each times its weight."""
        ...

    def tokens(self, rows: Indices) -> tuple[int, int]:
        """Number of (real tokens, tokens with padding) of these rows."""
        ...

    def loss(self, rows: Indices) -> Tensor:
        """The objective summed over the units of these rows, a scalar. Called under autocast."""
        ...


class PaddedTrainingData(ABC):
    """Training data with recurring tensor shapes, so that a GPU's work can be recorded once per shape."""

    model: torch.nn.Module

    @property
    def is_recordable(self) -> bool:
        """Whether the objective's operations depend on the shapes alone, not on the values."""
        return True

    @property
    def kernels(self) -> Sequence[torch.nn.Module]:
        """Parts of the objective that can be compiled."""
        return ()

    def prepare(self, device: Device) -> None:  # noqa: B027 - most have nothing to choose
        """Chooses how the objective is computed on a GPU, where the model already is."""

    @abstractmethod
    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """Tensors of these rows in host memory, padded to lengths that are a multiple of `multiple`."""

    @abstractmethod
    def objective(self, inputs: Inputs) -> Tensor:
        """The loss, see `TrainingData`, of `inputs` on the model's device."""

    def loss(self, rows: Indices) -> Tensor:
        """See `TrainingData`."""
        device = next(self.model.parameters()).device
        return self.objective({name: tensor.to(device) for name, tensor in self.inputs(rows, 1).items()})


def padded(rows: Sequence[NDArray[Any]], value: float, multiple: int = 1) -> Tensor:
    """Rows `(length, ...)` padded on the right to `(rows, longest, ...)`, with `longest` a multiple of `multiple`."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    whole = np.full((len(rows), longest, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return torch.from_numpy(whole)


def padded_with_mask(rows: Sequence[NDArray[Any]], value: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, `(rows, length)`, see `padded`."""
    mask = padded([np.ones(len(row), dtype=np.int64) for row in rows], 0, multiple)
    return padded(rows, value, multiple).long(), mask
