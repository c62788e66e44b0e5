"""What makes training on a GPU faster and changes nothing but the rounding: weights in bf16, fused kernels."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers.models.t5.modeling_t5 import T5LayerNorm

from retort.models.device import Device
from retort.students.schedule import Schedule
from retort.students.training_data import PaddedTrainingData, TrainingData

WORTH_COMPILING = 1e17
"""Operations of a training from which on its layers are compiled: some five minutes on one H200, of which compiling
saves more than the half minute that it takes. Counted in advance, so that a resumed training decides alike."""
_COUNTED_BATCHES = 16
"""Number of batches whose tokens are counted for that."""
_VARIANTS = 64
"""How many variants of a layer's code are compiled, one for each combination of flags that its layers have."""


class CompiledLayers:
    """The layers of a model, and other modules, compiled by torch for tensors of any size."""

    def __init__(self, model: torch.nn.Module, others: Sequence[torch.nn.Module]) -> None:
        self._modules = [*layers_of(model), *others]
        for module in self._modules:
            module.compile(dynamic=True)

    def paused(self) -> contextlib.AbstractContextManager[object]:
        """Inside, the layers compute uncompiled, for passes too few to compile them anew, without gradients."""
        uncompiled: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return uncompiled

    def undo(self) -> None:
        """For good."""
        for module in self._modules:
            module._compiled_call_impl = None


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers of a model of transformers."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


@contextlib.contextmanager
def acceleration(
    model: torch.nn.Module, data: Sequence[TrainingData], schedule: Schedule, device: Device
) -> Iterator[CompiledLayers | None]:
    """Prepares model and data, the training's first, for a GPU; does nothing on a CPU. Gives the compiled layers if
    the training is long enough for that; outside of the context they are as before."""
    if device.name == "cpu":
        yield None
        return
    use_fused_norms(model)
    padded = [own for own in data if isinstance(own, PaddedTrainingData)]
    for own in padded:
        own.prepare(device)
    if isinstance(model, FSDPModule) or drops(model) or operations(model, data[0], schedule) < WORTH_COMPILING:
        yield None
        return
    compiled = CompiledLayers(model, [kernel for own in padded for kernel in own.kernels])
    try:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            yield compiled
    finally:
        compiled.undo()


def drops(model: torch.nn.Module) -> bool:
    """Whether the model has dropout. Compiled, it could not be recorded as a CUDA graph (T5-base, torch 2.11 on one
    H200), and compiling took three minutes where that of a decoder without took half of one."""
    modules = list(model.modules())
    as_module = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in modules)
    as_function = (getattr(module, "dropout", 0.0) for module in modules)  # where BART and others have its share
    return as_module or any(isinstance(share, float) and share > 0 for share in as_function)


def operations(model: torch.nn.Module, data: TrainingData, schedule: Schedule) -> float:
    """Floating-point operations of a training, roughly: 6 per weight and token."""
    some = [*islice(schedule.after(0), _COUNTED_BATCHES)]
    tokens = sum(data.tokens(batch)[1] for batch in some) / max(1, len(some)) * len(schedule)
    return 6.0 * tokens * sum(parameter.numel() for parameter in model.parameters())


def use_fused_norms(model: torch.nn.Module) -> None:
    """Replaces T5's layer norm (RMSNorm, arXiv 1910.07467), six kernels in transformers, by torch's single kernel."""
    for module in model.modules():
        if isinstance(module, T5LayerNorm):
            module.forward = partial(_rms_norm, module)  # type: ignore[method-assign]


def _rms_norm(norm: T5LayerNorm, hidden_states: Tensor) -> Tensor:
    shape = (hidden_states.shape[-1],)
    return torch.nn.functional.rms_norm(hidden_states, shape, norm.weight, norm.variance_epsilon)
