"""A small training whose held-out rows tell when to end, and which kills its process if it is told to."""

import os
import signal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.config import StoppingConfig, StudentTrainingConfig
from retort.models.device import Device
from retort.students.base import History
from retort.students.batching import Indices
from retort.students.training import fit

CPU = Device("cpu", "fp32", 1)
EPOCHS, STEPS = 40, 3
"""Steps in each epoch."""


def training(patience: int = 3, **fields: Any) -> StudentTrainingConfig:
    stopping = StoppingConfig(by="distillation_loss", patience=patience)
    given = {"epochs": EPOCHS, "min_updates": 0, "learning_rate": 3e-2, "batch_tokens": 8, "precision": "fp32"}
    return StudentTrainingConfig(**{**given, "stopping": stopping, **fields})


class Rows:
    """A regression on 24 rows of noise with dropout: training learns them by heart, and held-out rows get worse."""

    def __init__(self, seed: int = 1, model: torch.nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.model = model or torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1)
        )
        generator = torch.Generator().manual_seed(seed)
        self._x = torch.randn(24, 8, generator=generator)
        self._y = self._x[:, 0] + torch.randn(24, generator=generator)
        self.calls, self.die_at = 0, -1

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return np.array_split(generator.permutation(24), -(-24 // budget_tokens))

    def units(self, rows: Indices) -> int:
        return len(rows)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        return len(rows), len(rows)

    def loss(self, rows: Indices) -> Tensor:
        self.calls += 1
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        places = torch.from_numpy(rows)
        return ((self.model(self._x[places])[:, 0] - self._y[places]) ** 2).sum()

    def whole_loss(self) -> float:
        self.model.eval()
        with torch.no_grad():
            return float(self.loss(np.arange(24))) / 24


def fitted(rows: Rows, config: StudentTrainingConfig, **options: Any) -> History:
    held_out = Rows(2, rows.model) if config.stopping else None
    return fit(rows.model, rows, config, seed=3, device=CPU, held_out=held_out, **options)
