"""A small training in which nothing but random numbers could differ, and which kills its process if it is told to."""

import os
import signal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.students.batching import Indices
from retort.students.training import fit

CPU = Device("cpu", "fp32", 1)
TRAINING = TrainingConfig(epochs=10, learning_rate=1e-2, batch_tokens=16, precision="fp32", warmup_share=0.2)


class Lines:
    """A regression with dropout, whose random numbers a resumed training must draw on from where it was."""

    def __init__(self, most_rows: int = 100) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        # Many a pretrained encoder has a layer on top that a student never asks.
        self.model.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
        self._x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        self._most_rows, self.steps, self.die_at = most_rows, 0, -1
        self.largest = 0

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return np.array_split(generator.permutation(40), -(-40 // budget_tokens))

    def units(self, rows: Indices) -> int:
        return len(rows)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        return len(rows), len(rows)

    def loss(self, rows: Indices) -> Tensor:
        self.steps += 1
        if self.steps == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(rows) > self._most_rows:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        self.largest = max(self.largest, len(rows))
        x = self._x[torch.from_numpy(rows)]
        return ((self.model(x)[:, 0] - x.sum(-1)) ** 2).sum()


def trained(lines: Lines, **options: Any) -> list[Tensor]:
    fit(lines.model, lines, TRAINING, seed=3, device=CPU, **options)
    return [parameter.detach().clone() for parameter in lines.model.parameters()]
