"""Sharding: several processes, each on a GPU of its own, train a model that does not fit one of them.

Each holds a part of every weight in fp32, of its gradient and of AdamW's moments, by torch's FSDP2 (arXiv 2304.11277;
stage 3 of ZeRO, arXiv 1910.02054). The weights of a layer are gathered when it computes, in the precision of the pass,
and let go of afterwards; its gradients are summed over the processes as soon as they are known. So all processes make
each pass together, and as many of them, which data parallelism (`data_parallel`) need not.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor, distribute_tensor

from retort.config import TrainingConfig
from retort.errors import ConfigError
from retort.models.device import Device, memory_bytes
from retort.students.acceleration import layers_of
from retort.students.data_parallel import is_first, num_ranks, of_first, summed
from retort.students.optimizer import MAX_GRAD_NORM, MOMENTS, Parameters, adamw

_WHOLE_BYTES = {"bf16": (20, 2), "fp32": (16, 4)}
"""What a weight takes in a process that holds the whole model, by precision: one that is trained (itself, its master,
gradients and moments, see `FlatAdamW`), and one that is not."""
_SHARDED_BYTES = (16, 4)
"""Likewise in all processes together if it is sharded."""
_ROOM_SHARE = 0.9
"""Share of a GPU's memory for that. The rest is for what passes compute."""
_OWN = ("_parameters", "_buffers", "_modules")
"""What a module keeps when it is no longer sharded."""


def must_shard(model: torch.nn.Module, device: Device) -> bool:
    """Whether the processes have to divide the model among them. The same in all. Raises ConfigError, see
    `check_room`."""
    check_room(model, device, num_ranks())
    whole = _bytes(model, _WHOLE_BYTES[device.precision])
    return of_first(num_ranks() > 1 and whole > _ROOM_SHARE * memory_bytes(device))


def check_room(model: torch.nn.Module, device: Device, gpus: int) -> None:
    """Raises ConfigError if so many GPUs have no room for the training of the model."""
    room, whole = memory_bytes(device), _bytes(model, _WHOLE_BYTES[device.precision])
    least = max(2, math.ceil(_bytes(model, _SHARDED_BYTES) / (_ROOM_SHARE * room)))
    if whole > room and gpus < least:
        weights = sum(parameter.numel() for parameter in model.parameters())
        raise ConfigError(
            f"execution.gpus_per_student: training the {weights / 1e9:.2g} billion weights of student.model takes "
            f"{whole / 1e9:.3g} GB, more than {gpus} GPU{'s' * (gpus > 1)} of {room / 1e9:.3g} GB; set it to "
            f"{least} or more, and parallel_students so low that each student gets as many, or use a smaller model or "
            "the lora of a causal one"
        )


def _bytes(model: torch.nn.Module, each: tuple[int, int]) -> int:
    of_trained, of_frozen = each
    return sum(p.numel() * (of_trained if p.requires_grad else of_frozen) for p in model.parameters())


class Sharding:
    """A model whose weights lie in parts in all processes."""

    def __init__(self, model: torch.nn.Module, device: Device) -> None:
        """`model` is whole in each process's host memory. Its parameters become parts on the device, in fp32; `undo`
        makes them whole again. Layer by layer, so that a GPU never holds more than its parts and a layer."""
        self.precision = torch.bfloat16 if device.precision == "bf16" else None
        self._model, self._calls = model, _Calls()
        # It tells of layers that return a view, which no model of transformers then changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        modules = [*_layers(model), model]
        self._before = [(module, type(module), _state_of(module)) for module in modules]
        mesh = init_device_mesh(device.name, (num_ranks(),))
        policy = MixedPrecisionPolicy(param_dtype=self.precision, reduce_dtype=torch.float32)
        for module in modules:
            sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)  # losses are divided by the units of the whole batch already
            sharded.set_force_sum_reduction_for_comms(True)
            sharded.set_custom_all_gather(_AllGather(self._calls))
            sharded.set_custom_reduce_scatter(_ReduceScatter(self._calls))
        self._root._get_fsdp_state()._lazy_init()  # what else the first pass does, which may fail before

    def begin_pass(self) -> None:
        self._root.reshard()  # which a pass without gradients leaves gathered: all passes make the same calls
        self._calls.made = 0

    @contextmanager
    def completing_pass(self) -> Iterator[None]:
        """After an error in a pass, a smaller pass inside this context makes the calls that the failed one has not come
        to, for which the other processes wait. Its result means nothing."""
        self._root.reset_iter_state()
        self._calls.made, self._calls.skipped = 0, self._calls.made
        try:
            yield
        finally:
            self._calls.skipped = 0

    @property
    def _root(self) -> FSDPModule:
        return cast(FSDPModule, self._model)

    def undo(self) -> None:
        """Leaves each process with the whole model, in host memory."""
        self._root.reshard()
        whole: dict[DTensor, torch.nn.Parameter] = {}
        for module in self._model.modules():
            for name, own in module._parameters.items():
                if isinstance(own, DTensor):
                    if own not in whole:  # tied weights
                        full = own.detach().full_tensor().cpu()
                        whole[own] = torch.nn.Parameter(full, requires_grad=own.requires_grad)
                    module._parameters[name] = whole[own]
        for module, kind, state in self._before:
            kept = {name: vars(module)[name] for name in _OWN}
            module.__class__ = kind
            vars(module).clear()
            vars(module).update({**state, **kept})
        self._model.to("cpu")


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that are gathered one at a time, inner ones first: without those that share a weight with others."""
    uses = Counter(id(own) for _, own in model.named_parameters(remove_duplicate=False))
    return [layer for layer in reversed(layers_of(model)) if all(uses[id(own)] == 1 for own in layer.parameters())]


def _state_of(module: torch.nn.Module) -> dict[str, Any]:
    return {name: copy.copy(value) for name, value in vars(module).items() if name not in _OWN}


def is_sharded(model: torch.nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def forget_pass(model: torch.nn.Module) -> None:
    """After an error in a pass that all processes met, makes a model, if it is sharded, ready for the next one."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()


class _Calls:
    """The calls of a pass to other processes, which come in the same order in all."""

    made = 0
    skipped = 0
    """The first ones, which a pass before has made."""

    def is_next_made(self) -> bool:
        self.made += 1
        return self.made <= self.skipped


class _AllGather(DefaultAllGather):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self._calls.is_next_made() else super().__call__(*args, **kwargs)


class _ReduceScatter(DefaultReduceScatter):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self._calls.is_next_made() else super().__call__(*args, **kwargs)


class ShardedAdamW:
    """Updates this process's parts of a sharded model's weights, which are the masters."""

    gradients = ()

    def __init__(self, sharding: Sharding, trained: Parameters, training: TrainingConfig) -> None:
        self.precision, self._sharding = sharding.precision, sharding
        self._trained = {name: cast(DTensor, parameter) for name, parameter in trained.items()}
        self.weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        # Of these torch's kernels know more than of a DTensor.
        self._parts = {name: torch.nn.Parameter(_part_of(own)) for name, own in self.weights.items()}
        decayed = [self._parts[name] for name, parameter in trained.items() if parameter.ndim >= 2]
        others = [self._parts[name] for name, parameter in trained.items() if parameter.ndim < 2]
        self._adamw = adamw(decayed, others, training)

    def clear(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None

    def collect(self) -> None:
        pass

    def step(self, learning_rate: float) -> None:
        for name, part in self._parts.items():
            gradient = self._trained[name].grad
            part.grad = None if gradient is None else _part_of(gradient)
        gradients = [part.grad for part in self._parts.values() if part.grad is not None]
        norm = summed(torch.stack(torch._foreach_norm(gradients)).square().sum()).sqrt()
        torch._foreach_mul_(gradients, (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0))
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.clear()

    def state(self) -> dict[str, Tensor]:
        """In the first process; the others take part."""
        state = {}
        for name, part in self._parts.items():
            for moment, own in self._adamw.state.get(part, {}).items():
                state[f"{moment}.{name}"] = own if moment == MOMENTS[0] else gathered(self._like(name, own))
        return state

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            share_out(saved[f"weight.{name}"], weight)
            if f"{MOMENTS[0]}.{name}" in saved:
                moments = {moment: torch.zeros_like(self._parts[name]) for moment in MOMENTS[1:]}
                for moment, own in moments.items():
                    share_out(saved[f"{moment}.{name}"], self._like(name, own))
                step = saved[f"{MOMENTS[0]}.{name}"].to(weight.device)
                self._adamw.state[self._parts[name]] = {MOMENTS[0]: step, **moments}

    def _like(self, name: str, part: Tensor) -> DTensor:
        """The tensor of a weight's shape of which this process holds `part`."""
        weight = self._trained[name]
        return DTensor.from_local(
            part.detach(), weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
        )

    def close(self) -> None:
        self.clear()
        self._sharding.undo()


def _part_of(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor."""
    return cast(DTensor, tensor).to_local()


def gathered(tensor: Tensor) -> Tensor:
    """The tensor itself; a sharded one whole in the first process's host memory, and without content in the others, all
    of which must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole.cpu() if is_first() else whole.to("meta")


def share_out(whole: Tensor, tensor: Tensor) -> None:
    """Sets a tensor to `whole`; a sharded one to that of the first process, in all of them."""
    if isinstance(tensor, DTensor):
        content = whole.to(tensor.device) if is_first() else torch.empty(tensor.shape, device=tensor.device)
        whole = distribute_tensor(content, tensor.device_mesh, tensor.placements)
    tensor.copy_(whole)
