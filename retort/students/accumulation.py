"""Gradient accumulation: one optimizer step, computed in parts that fit memory."""

import contextlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from retort.models.device import Device, random_states, set_random_states
from retort.students.batching import Indices
from retort.students.cuda_graphs import LENGTH_MULTIPLE, Recorder
from retort.students.data_parallel import joint_gradients, share_of, summed
from retort.students.dropout import CpuDropout
from retort.students.training_data import PaddedTrainingData, TrainingData


class Gradients:
    """Accumulates the gradients of the mean objective over a batch's units.

    Processes that train together compute a share each, and then sum them outside of CUDA graphs: one of them may launch
    kernel by kernel what others have recorded, or split its share further.
    """

    def __init__(
        self, data: TrainingData, parameters: Iterable[torch.nn.Parameter], device: Device, parts: int
    ) -> None:
        self._data, self._parameters, self._device = data, list(parameters), device
        self.parts = parts
        """Number of parts that a batch, or this process's share of it, is split into."""
        self._recorder: Recorder | None = None
        self._joint = joint_gradients(self._parameters)
        """The gradients, if other processes are to add theirs."""
        self.clear()

    def clear(self) -> None:
        """Resets all gradients. On a GPU they are zeroed in place, because recorded passes add to fixed addresses."""
        if self._joint:
            torch._foreach_zero_(self._joint)
        elif self._device.name == "cpu":
            for parameter in self._parameters:
                parameter.grad = None
        elif self._parameters[0].grad is None:
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        else:
            torch._foreach_zero_([parameter.grad for parameter in self._parameters if parameter.grad is not None])

    def add(self, batch: Indices) -> Tensor:
        """Adds the batch's gradients and returns its mean loss, a detached scalar, without synchronizing with a GPU.

        Out of memory, it doubles the number of parts and starts the batch again from the same random state.
        """
        loss = self._of_rows(share_of(batch), 1 / max(1, self._data.units(batch)))
        for gradients in self._joint:
            summed(gradients)
        return summed(loss)

    def _of_rows(self, rows: Indices, factor: float) -> Tensor:
        """Adds the gradients of the rows' objective times `factor`."""
        generators = random_states(self._device)
        while True:
            try:
                return self._accumulated(rows, factor)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or self.parts >= len(rows):
                    raise
            # Outside the handler, whose traceback keeps the tensors alive that did not fit.
            self.parts *= 2
            self.clear()
            self._recorder = None
            set_random_states(generators)
            if self._device.name == "cuda":
                torch.cuda.empty_cache()

    def _accumulated(self, rows: Indices, factor: float) -> Tensor:
        data, total = self._data, torch.zeros((), device=self._device.name)
        for part in parts_of(rows, self.parts):
            if self._device.name == "cuda" and isinstance(data, PaddedTrainingData) and data.is_recordable:
                total += self._recorded(data, part, factor)
            else:
                total += self._launched(part, factor)
        return total

    def _launched(self, part: Indices, factor: float) -> Tensor:
        drawing = CpuDropout() if self._device.name == "cpu" else contextlib.nullcontext()
        with self._device.autocast(), drawing:
            loss = self._data.loss(part) * factor
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _recorded(self, data: PaddedTrainingData, part: Indices, factor: float) -> Tensor:
        self._recorder = self._recorder or Recorder(data.objective, self._device)
        return self._recorder.backward({**data.inputs(part, LENGTH_MULTIPLE), "factor": torch.tensor(factor)})


def parts_of(rows: Indices, parts: int) -> list[Indices]:
    """The rows in that many parts, or as many as there are rows."""
    return np.array_split(rows, min(parts, len(rows))) if len(rows) else []


def _is_out_of_memory(error: BaseException) -> bool:
    """The CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
