"""The forward and backward pass on a GPU as CUDA graphs: recorded once for each shape, then launched as one.

A step of a small model is thousands of kernels of some microseconds each, which a processor launches slower than a GPU
computes them: T5-base on 32 rows took 116 ms by launches and 40 ms as a graph (one H200). See
https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm

from retort.models.device import Device
from retort.students.training_data import Inputs

LENGTH_MULTIPLE = 8
"""Lengths are padded to it, so that shapes recur; it is also what fast attention kernels want."""
MOST_GRAPHS = 256
"""Shapes that are recorded; each graph takes some megabytes."""

_Shape = tuple[tuple[int, ...], ...]


class Recorder:
    """Adds gradients to the parameters' `.grad`, which stay where they are in memory."""

    def __init__(self, objective: Callable[[Inputs], Tensor], device: Device) -> None:
        self._objective, self._device = objective, device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[_Shape, _Graph | None] = {}
        self._works = True

    def backward(self, inputs: Inputs) -> Tensor:
        """Of the objective times `inputs["factor"]`, a scalar; that loss, detached.

        A shape's first pass is launched kernel by kernel, since libraries make themselves ready in it.
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
        """None where the model does what cannot be recorded, such as asking for a tensor's value."""
        places = {name: tensor.cuda() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                loss = self._launch(places)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._works = False
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"training goes on without CUDA graphs, which this model does not allow: {reason}", stacklevel=2
            )
            return None
        return _Graph(graph, places, loss)


class _Graph:
    def __init__(self, graph: torch.cuda.CUDAGraph, places: Inputs, loss: Tensor) -> None:
        self._graph, self._places, self._loss = graph, places, loss

    def replay(self, inputs: Inputs) -> Tensor:
        for name, tensor in inputs.items():
            self._places[name].copy_(tensor.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._loss.clone()


def use_fused_norms(model: torch.nn.Module) -> None:
    """T5's layer norm (RMSNorm, arXiv 1910.07467) is six kernels in transformers and one in torch."""
    for module in model.modules():
        if isinstance(module, T5LayerNorm):
            module.forward = partial(_rms_norm, module)  # type: ignore[method-assign]


def _rms_norm(norm: T5LayerNorm, hidden_states: Tensor) -> Tensor:
    shape = (hidden_states.shape[-1],)
    return torch.nn.functional.rms_norm(hidden_states, shape, norm.weight, norm.variance_epsilon)


def _sent(tensor: Tensor) -> Tensor:
    return tensor.pin_memory().cuda(non_blocking=True)
