"""Gradient accumulation: one optimizer step, computed in parts that fit memory."""

import contextlib
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from retort.models.device import Device, random_states, set_random_states
from retort.students.acceleration import CompiledLayers
from retort.students.batching import Indices
from retort.students.cpu_kernels import CpuKernels
from retort.students.cuda_graphs import LENGTH_MULTIPLE, Recorder
from retort.students.data_parallel import in_any, num_ranks, share_of, summed
from retort.students.optimizer import Optimizer
from retort.students.sharding import Sharding
from retort.students.training_data import PaddedTrainingData, TrainingData


class Gradients:
    """Accumulates the gradients of the mean objective over a batch's units.

    Processes that train together compute a share each, and then sum them outside of CUDA graphs: one of them may launch
    kernel by kernel what others have recorded, or split its share further.
    """

    def __init__(
        self,
        data: TrainingData,
        optimizer: Optimizer,
        device: Device,
        parts: int,
        compiled: CompiledLayers | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self._data, self._optimizer, self._compiled, self._sharding = data, optimizer, compiled, sharding
        self.parts = parts
        """Number of parts that a batch, or this process's share of it, is split into."""
        self.device = device if optimizer.precision is None else replace(device, precision="fp32")
        """Where, and with which autocast, passes compute: with none where the weights have the precision themselves."""
        self._casting = device
        self._recorder: Recorder | None = None
        self._optimizer.clear()

    def add(self, batch: Indices) -> Tensor:
        """Adds the batch's gradients and returns its mean loss, a detached scalar, without synchronizing with a GPU.

        Out of memory, it doubles the number of parts and starts the batch again from the same random state. So it does
        after any other error if there is a slower way to compute that is less likely to fail.
        """
        share, factor = share_of(batch), 1 / max(1, self._data.units(batch))
        if self._sharding is not None:
            return summed(self._in_step(self._sharding, batch, factor))
        loss = self._of_rows(share, factor)
        if not len(share):
            self._optimizer.collect()  # nothing, in place of the gradients of the step before
        for gradients in self._optimizer.gradients:
            summed(gradients)
        return summed(loss)

    def _of_rows(self, rows: Indices, factor: float) -> Tensor:
        """Adds the gradients of the rows' objective times `factor`."""
        generators = random_states(self.device)
        while True:
            try:
                return self._accumulated(rows, factor)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                is_out_of_memory, reason = _is_out_of_memory(error), str(error).partition("\n")[0]
                if self.parts >= len(rows) if is_out_of_memory else not self._can_slow_down:
                    raise
            # Outside the handler, whose traceback keeps the tensors alive that did not fit.
            if is_out_of_memory:
                self.parts *= 2
            else:
                self._slow_down(reason)
            self._begin_again(generators)

    def _in_step(self, sharding: Sharding, batch: Indices, factor: float) -> Tensor:
        """Adds the gradients of this process's share of the batch, pass by pass with the others. If one of them is out
        of memory, all split their shares further."""
        generators = random_states(self.device)
        while True:
            total, fails = torch.zeros((), device=self.device.name), False
            for part, counts in equal_parts(batch, self.parts):
                loss = self._passed(sharding, part, factor * counts)
                fails = in_any(loss is None)
                if fails or loss is None:
                    break
                total += loss
            if not fails:
                return total
            if self.parts >= most_parts(batch):
                raise torch.OutOfMemoryError("a GPU's memory is too small for a row of each process's")
            self.parts *= 2
            self._begin_again(generators)

    def _begin_again(self, generators: dict[str, Tensor]) -> None:
        self._optimizer.clear()
        self._recorder = None
        set_random_states(generators)
        if self.device.name == "cuda":
            torch.cuda.empty_cache()

    def _passed(self, sharding: Sharding, part: Indices, factor: float) -> Tensor | None:
        """The loss of a pass; None if it does not fit memory."""
        sharding.begin_pass()
        try:
            return self._launched(part, factor)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback keeps the tensors alive that did not fit.
        with sharding.completing_pass():
            self._launched(part[:1], 0.0)
        return None

    @property
    def _can_slow_down(self) -> bool:
        return self._compiled is not None or self.device != self._casting

    def _slow_down(self, reason: str) -> None:
        if self._compiled is not None:
            lost = "compiled layers"
            self._compiled.undo()
            self._compiled = None
        else:  # a model that mixes precisions
            lost, self.device = "bf16 throughout", self._casting
        warnings.warn(f"training goes on without {lost}, which this model does not allow: {reason}", stacklevel=3)

    def _accumulated(self, rows: Indices, factor: float) -> Tensor:
        data, total = self._data, torch.zeros((), device=self.device.name)
        for part in parts_of(rows, self.parts):
            if self.device.name == "cuda" and isinstance(data, PaddedTrainingData) and data.is_recordable:
                total += self._recorded(data, part, factor)
            else:
                total += self._launched(part, factor)
            self._optimizer.collect()
        return total

    def _launched(self, part: Indices, factor: float) -> Tensor:
        kernels = CpuKernels() if self.device.name == "cpu" else contextlib.nullcontext()
        with self.device.autocast(), kernels:
            loss = self._data.loss(part) * factor
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _recorded(self, data: PaddedTrainingData, part: Indices, factor: float) -> Tensor:
        self._recorder = self._recorder or Recorder(data.objective, self.device)
        return self._recorder.backward({**data.inputs(part, LENGTH_MULTIPLE), "factor": torch.tensor(factor)})


def parts_of(rows: Indices, parts: int) -> list[Indices]:
    """The rows in that many parts, or as many as there are rows."""
    return np.array_split(rows, min(parts, len(rows))) if len(rows) else []


def most_parts(batch: Indices) -> int:
    """How many parts the largest share of a batch can be split into."""
    return -(-len(batch) // num_ranks())


def equal_parts(batch: Indices, parts: int) -> list[tuple[Indices, float]]:
    """This process's parts of a batch and what each counts. They are as many in every process: one with too few rows
    takes another's first row, which counts 0."""
    own = np.array_split(share_of(batch), min(parts, most_parts(batch)))
    return [(part, 1.0) if len(part) else (batch[:1], 0.0) for part in own]


def _is_out_of_memory(error: BaseException) -> bool:
    """The CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
