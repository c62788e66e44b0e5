"""The gradients of one step, in parts that fit memory."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from retort.models.device import Device, random_states, set_random_states
from retort.students.batching import Indices
from retort.students.cuda_graphs import LENGTH_MULTIPLE, Recorder
from retort.students.training_data import PaddedTrainingData, TrainingData


class Gradients:
    """Of the mean objective over a batch's units."""

    def __init__(
        self, lessons: TrainingData, parameters: Iterable[torch.nn.Parameter], device: Device, parts: int
    ) -> None:
        self._lessons, self._parameters, self._device = lessons, list(parameters), device
        self.parts = parts
        """That a batch is cut into."""
        self._recorder: Recorder | None = None
        self.clear()

    def clear(self) -> None:
        """A GPU's stay where they are, since recorded passes add to them there."""
        if self._device.name == "cpu":
            for parameter in self._parameters:
                parameter.grad = None
        elif self._parameters[0].grad is None:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        else:
            torch._foreach_zero_([parameter.grad for parameter in self._parameters if parameter.grad is not None])

    def add(self, batch: Indices) -> Tensor:
        """The mean, detached and not waited for, a scalar. Halves the parts until they fit memory."""
        generators = random_states(self._device)
        while True:
            try:
                return self._accumulated(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or self.parts >= len(batch):
                    raise
            # Outside of the handler, whose traceback holds the tensors that were too many.
            self.parts *= 2
            self.clear()
            self._recorder = None
            set_random_states(generators)
            if self._device.name == "cuda":
                torch.cuda.empty_cache()

    def _accumulated(self, batch: Indices) -> Tensor:
        lessons, total = self._lessons, torch.zeros((), device=self._device.name)
        factor = 1 / max(1, lessons.units(batch))
        for part in np.array_split(batch, min(self.parts, len(batch))):
            if self._device.name == "cuda" and isinstance(lessons, PaddedTrainingData) and lessons.is_recordable:
                total += self._recorded(lessons, part, factor)
            else:
                total += self._launched(part, factor)
        return total

    def _launched(self, part: Indices, factor: float) -> Tensor:
        with self._device.autocast():
            loss = self._lessons.loss(part) * factor
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _recorded(self, lessons: PaddedTrainingData, part: Indices, factor: float) -> Tensor:
        self._recorder = self._recorder or Recorder(lessons.objective, self._device)
        return self._recorder.backward({**lessons.inputs(part, LENGTH_MULTIPLE), "factor": torch.tensor(factor)})


def _is_out_of_memory(error: BaseException) -> bool:
    """A processor's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
