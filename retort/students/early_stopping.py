"""Early stopping by the loss on held-out rows, keeping the weights with the lowest.

All progress is in the history, which a checkpoint contains anyway; the best weights are stored beside it.
"""

import contextlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.students.acceleration import CompiledLayers
from retort.students.accumulation import equal_parts, parts_of
from retort.students.base import History
from retort.students.batching import Indices
from retort.students.data_parallel import share_of, summed
from retort.students.schedule import Schedule
from retort.students.sharding import gathered, is_sharded, share_out
from retort.students.training_data import TrainingData

_BEST = "best."
"""Prefix of a parameter's name in a checkpoint."""


class EarlyStopping:
    """Measures the held-out loss after each epoch of the schedule."""

    def __init__(
        self,
        held_out: TrainingData,
        training: TrainingConfig,
        schedule: Schedule,
        model: torch.nn.Module,
        weights: Mapping[str, Tensor],
        compiled: CompiledLayers | None = None,
    ) -> None:
        """`weights` are the trained ones in fp32, by name, which the optimizer holds."""
        assert training.stopping is not None, "rows are held out to stop by"
        self._held_out, self._model, self._weights = held_out, model, weights
        self._uncompiled = compiled.paused if compiled else contextlib.nullcontext
        self._patience = training.stopping.patience
        # The same batches each time, independent of the training's random state.
        self._batches = held_out.batches(training.batch_tokens, np.random.default_rng(0))
        epochs, num_steps = schedule.epochs, len(schedule)
        ends = (math.floor(epoch * num_steps / epochs) for epoch in range(1, math.ceil(epochs) + 1))
        self._ends = {max(1, min(end, num_steps)) for end in ends}
        self._best: dict[str, Tensor] = {}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restores the best weights from a checkpoint's tensors."""
        self._best = {name.removeprefix(_BEST): own for name, own in saved.items() if name.startswith(_BEST)}

    def tensors(self) -> dict[str, Tensor]:
        """The best weights, named as in a checkpoint."""
        return {f"{_BEST}{name}": weight for name, weight in self._best.items()}

    def ends(self, step: int, history: History, device: Device, parts: int) -> bool:
        """Whether training ends after this step; at the end of an epoch it measures the loss and updates `history`.

        `parts` is the number of parts that a batch must be split into to fit memory. No random number is drawn.
        """
        if step not in self._ends:
            return False
        history.held_out_steps.append(step)
        with self._uncompiled():
            history.held_out_losses.append(self._loss(device, parts))
        best = best_of(history.held_out_losses)
        if best == len(history.held_out_losses) - 1:
            self._best = {
                name: gathered(weight) if isinstance(weight, DTensor) else weight.detach().to("cpu", copy=True)
                for name, weight in self._weights.items()
            }
        history.kept_step = history.held_out_steps[best]
        if len(history.held_out_losses) - 1 - best >= self._patience:
            history.ended_by = "patience"
        return history.ended_by == "patience"

    def keep_best(self) -> None:
        """Copies the best weights to the optimizer's."""
        for name, weight in self._best.items():
            share_out(weight, self._weights[name])

    @torch.no_grad()
    def _loss(self, device: Device, parts: int) -> float:
        """Mean objective over the units of all held-out rows."""
        was_training = self._model.training
        self._model.eval()
        sums = []
        for batch in self._batches:
            for part, counts in self._parts(batch, parts):
                with device.autocast():
                    sums.append(float(self._held_out.loss(part)) * counts)
        self._model.train(was_training)
        total = summed(torch.tensor(math.fsum(sums), dtype=torch.float64))
        return float(total) / sum(self._held_out.units(batch) for batch in self._batches)

    def _parts(self, batch: Indices, parts: int) -> list[tuple[Indices, float]]:
        if is_sharded(self._model):
            return equal_parts(batch, parts)
        return [(part, 1.0) for part in parts_of(share_of(batch), parts)]


def best_of(losses: list[float]) -> int:
    """Index of the lowest loss, the first of equals; NaN counts as higher than any number."""
    return min(range(len(losses)), key=lambda place: (math.isnan(losses[place]), losses[place], place))
