"""Forward and backward passes as CUDA graphs: recorded once per input shape, then launched as a whole.

A step of a small model consists of thousands of kernels of a few microseconds each, which the CPU launches more slowly
than the GPU runs them: T5-base on 32 rows took 116 ms with single launches and 40 ms as a graph (one H200). See
https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from retort.models.device import Device
from retort.students.training_data import Inputs

LENGTH_MULTIPLE = 8
"""Sequence lengths are padded to a multiple of this, so that shapes recur; fast attention kernels prefer it too."""
MOST_GRAPHS = 256
"""Maximum number of recorded shapes; each graph takes a few megabytes."""

_Shape = tuple[tuple[int, ...], ...]


class Recorder:
    """Adds gradients to the parameters' `.grad`, whose memory addresses must not change."""

    def __init__(self, objective: Callable[[Inputs], Tensor], device: Device) -> None:
        self._objective, self._device = objective, device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[_Shape, _Graph | None] = {}
        self._works = True

    def backward(self, inputs: Inputs) -> Tensor:
        """Backpropagates the objective times `inputs["factor"]` and returns that loss, a detached scalar.

        The first pass of each shape is launched kernel by kernel, because libraries initialize themselves in it.
        """
        shape: _Shape = tuple(tuple(tensor.shape) for tensor in inputs.values())
        if self._works and shape in self._graphs:
            if (graph := self._graphs[shape] or self._record(inputs)) is not None:
                self._graphs[shape] = graph
                return graph.replay(inputs)
        elif len(self._graphs) < MOST_GRAPHS:
            self._graphs[shape] = None
        return self._launch({name: _sent(tensor) for name, tensor in inputs.items()})

    def _launch(self, inputs: Inputs) -> Tensor:
        with self._device.autocast():
            loss = self._objective(inputs) * inputs["factor"]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _record(self, inputs: Inputs) -> "_Graph | None":
        """None if the model does something that cannot be recorded, such as reading a tensor's value."""
        places = {name: tensor.cuda() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on: that of NCCL looks after its sums while this one records.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._launch(places)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._works = False
            end_recording()
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"training goes on without CUDA graphs, which this model does not allow: {reason}", stacklevel=2
            )
            return None
        return _Graph(graph, places, loss)


def end_recording() -> None:
    """Frees the generator of random numbers from a recording that failed, for which it would wait: every dropout after
    it would fail too."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


class _Graph:
    """A recorded pass, with the addresses of its inputs and its loss."""

    def __init__(self, graph: torch.cuda.CUDAGraph, places: Inputs, loss: Tensor) -> None:
        self._graph, self._places, self._loss = graph, places, loss

    def replay(self, inputs: Inputs) -> Tensor:
        for name, tensor in inputs.items():
            self._places[name].copy_(tensor.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._loss.clone()


def _sent(tensor: Tensor) -> Tensor:
    return tensor.pin_memory().cuda(non_blocking=True)
