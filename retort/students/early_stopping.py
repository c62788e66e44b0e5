"""Ending a training by the loss on rows that it is not trained on, and keeping the weights that had the lowest.

How far it is can be read off the history, which a checkpoint holds anyway; the best weights lie there beside it.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.students.base import History
from retort.students.training_data import TrainingData

_BEST = "best."
"""Before a parameter's name, in a checkpoint."""


class EarlyStopping:
    """Looks at the held-out rows after each epoch, in at most `num_steps` steps of training."""

    def __init__(
        self,
        held_out: TrainingData,
        training: TrainingConfig,
        num_steps: int,
        model: torch.nn.Module,
        trained: Mapping[str, torch.nn.Parameter],
    ) -> None:
        assert training.stopping is not None, "rows are held out to stop by"
        self._lessons, self._model, self._trained = held_out, model, trained
        self._patience = training.stopping.patience
        # The same batches each time, whatever was drawn before.
        self._batches = held_out.batches(training.batch_tokens, np.random.default_rng(0))
        epochs = math.ceil(training.epochs)
        ends = (math.floor(epoch * num_steps / training.epochs) for epoch in range(1, epochs + 1))
        self._ends = {max(1, min(end, num_steps)) for end in ends}
        self._best: dict[str, Tensor] = {}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """From a checkpoint's tensors."""
        self._best = {name.removeprefix(_BEST): own for name, own in saved.items() if name.startswith(_BEST)}

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {f"{_BEST}{name}": weight for name, weight in self._best.items()}

    def ends(self, step: int, history: History, device: Device, parts: int) -> bool:
        """Whether the training is to end after this step. `parts` of a batch fit memory. Draws no random number."""
        if step not in self._ends:
            return False
        history.held_out_steps.append(step)
        history.held_out_losses.append(self._loss(device, parts))
        best = best_of(history.held_out_losses)
        if best == len(history.held_out_losses) - 1:
            self._best = {name: weight.detach().to("cpu", copy=True) for name, weight in self._trained.items()}
        history.kept_step = history.held_out_steps[best]
        if len(history.held_out_losses) - 1 - best >= self._patience:
            history.ended_by = "patience"
        return history.ended_by == "patience"

    def keep_best(self) -> None:
        """Into the model."""
        for name, weight in self._best.items():
            self._trained[name].data.copy_(weight)

    @torch.no_grad()
    def _loss(self, device: Device, parts: int) -> float:
        """Mean over the units of all held-out rows."""
        was_training = self._model.training
        self._model.eval()
        sums = []
        for batch in self._batches:
            for part in np.array_split(batch, min(parts, len(batch))):
                with device.autocast():
                    sums.append(float(self._lessons.loss(part)))
        self._model.train(was_training)
        return math.fsum(sums) / sum(self._lessons.units(batch) for batch in self._batches)


def best_of(losses: list[float]) -> int:
    """The place of the first of the lowest; one that is no number is higher than all."""
    return min(range(len(losses)), key=lambda place: (math.isnan(losses[place]), losses[place], place))
