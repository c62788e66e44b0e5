"""AdamW with clipped gradients: over flat buffers, or on a CPU in fp32 parameter by parameter (`sharding` has that of a
model spread over several GPUs).

With bf16, the model's own weights and gradients are bf16, so that no pass casts them. What is optimized are
fp32 *master* copies: an update is often smaller than the distance between two bf16 numbers (2^-8 of the weight) and
would be rounded away (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from retort.config import TrainingConfig
from retort.students.data_parallel import joint_gradients

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state per parameter."""
_ALIGNMENT = 64
"""Each parameter begins at a multiple of so many values, because fast kernels want aligned addresses."""

Parameters = Mapping[str, torch.nn.Parameter]


class Optimizer(Protocol):
    """Updates weights by the gradients that passes add to the parameters' `.grad`."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The trained weights in fp32, by name, without gradients. What is written to them, `close` leaves in the
        model."""
        ...

    @property
    def precision(self) -> torch.dtype | None:
        """The precision that it gives all weights of the model; None if it leaves them alone."""
        ...

    @property
    def gradients(self) -> Sequence[Tensor]:
        """The buffers of collected gradients, to which other processes add theirs; a process that trains alone may have
        none."""
        ...

    def clear(self) -> None:
        """Resets all gradients."""
        ...

    def collect(self) -> None:
        """Takes up the gradients of a part of a step; called after each part's backward pass."""
        ...

    def step(self, learning_rate: float) -> None:
        """Clips the collected gradients, updates the weights and resets the gradients."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The moments as a checkpoint holds them, `MOMENT.PARAMETER`."""
        ...

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Sets weights and moments to those of a checkpoint, which also has `weight.PARAMETER`."""
        ...

    def close(self) -> None:
        """Leaves the model with fp32 weights of its own."""
        ...


def adamw(
    decayed: Sequence[torch.nn.Parameter], others: Sequence[torch.nn.Parameter], training: TrainingConfig
) -> torch.optim.AdamW:
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


class PlainAdamW:
    """Keeps the parameters as they are."""

    precision = None

    def __init__(self, trained: Parameters, training: TrainingConfig) -> None:
        self.weights = {name: parameter.detach() for name, parameter in trained.items()}
        self._trained = trained
        decayed = [p for p in trained.values() if p.ndim >= 2]
        self._adamw = adamw(decayed, [p for p in trained.values() if p.ndim < 2], training)
        self.gradients = joint_gradients([*trained.values()])

    def clear(self) -> None:
        if self.gradients:
            torch._foreach_zero_(self.gradients)
            return
        for parameter in self._trained.values():
            parameter.grad = None

    def collect(self) -> None:
        pass

    def step(self, learning_rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self._trained.values(), MAX_GRAD_NORM)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.clear()

    def state(self) -> dict[str, Tensor]:
        # A weight that the objective does not depend on has no state.
        return {
            f"{moment}.{name}": own.contiguous()
            for name, parameter in self._trained.items()
            for moment, own in self._adamw.state.get(parameter, {}).items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.data.copy_(saved[f"weight.{name}"])
            if f"{MOMENTS[0]}.{name}" in saved:
                moments = {moment: saved[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                self._adamw.state[parameter] = moments

    def close(self) -> None:
        pass


class FlatAdamW:
    """Keeps all weights in one buffer, all gradients in another, and so on, so that a step is a few kernels.

    The gradients stay at their addresses, to which recorded passes add.
    """

    def __init__(
        self, model: torch.nn.Module, trained: Parameters, training: TrainingConfig, dtype: torch.dtype
    ) -> None:
        """Turns all weights of `model` to `dtype`, those too that are not trained; `close` turns them back."""
        self._trained, self.precision = trained, dtype
        device = next(iter(trained.values())).device
        decayed = [name for name, parameter in trained.items() if parameter.ndim >= 2]
        others = [name for name, parameter in trained.items() if parameter.ndim < 2]
        self._places: dict[str, slice] = {}
        ends, end = [], 0
        for names in (decayed, others):
            for name in names:
                self._places[name] = slice(end, end + trained[name].numel())
                end += -(-trained[name].numel() // _ALIGNMENT) * _ALIGNMENT
            ends.append(end)
        masters = torch.zeros(end, device=device)
        self.weights = self._views(masters)
        for name, parameter in trained.items():
            self.weights[name].copy_(parameter.detach())
        self._masters, self._sum = masters, torch.zeros_like(masters)
        own = dtype == torch.float32
        self._weights = masters if own else masters.to(dtype)
        self._gradients = self._sum if own else torch.zeros_like(self._weights)
        weights, gradients = self._views(self._weights), self._views(self._gradients)
        for name, parameter in trained.items():
            parameter.grad = None
            parameter.data, parameter.grad = weights[name], gradients[name]
        # In host memory, because nothing needs them before the end.
        rest = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32 != dtype]
        self._frozen = [(p, p.data.cpu()) for p in rest]
        for parameter in rest:
            parameter.data = parameter.data.to(dtype)
        groups, start = [], 0
        for end, decay in zip(ends, (training.weight_decay, 0.0), strict=True):
            if end > start:
                part = torch.nn.Parameter(masters[start:end])
                part.grad = self._sum[start:end]
                groups.append({"params": [part], "weight_decay": decay})
            start = end
        self._adamw = torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
        self._starts = [0, ends[0]] if len(groups) == 2 else [0]
        self._is_fresh = True

    @property
    def gradients(self) -> Sequence[Tensor]:
        return [self._sum]

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: flat[place].view(self._trained[name].shape) for name, place in self._places.items()}

    def clear(self) -> None:
        self._gradients.zero_()
        self._is_fresh = True

    def collect(self) -> None:
        if self._gradients is self._sum:
            return
        # Parts are added up in fp32, not in bf16, which would lose what a small part adds to a large sum.
        if self._is_fresh:
            self._sum.copy_(self._gradients)
        else:
            self._sum.add_(self._gradients)
        self._gradients.zero_()
        self._is_fresh = False

    def step(self, learning_rate: float) -> None:
        norm = torch.linalg.vector_norm(self._sum)
        self._sum.mul_((MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0))
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        if self._weights is not self._masters:
            self._weights.copy_(self._masters)
        self.clear()

    def state(self) -> dict[str, Tensor]:
        state = {}
        for start, group in zip(self._starts, self._adamw.param_groups, strict=True):
            (part,) = group["params"]
            if (moments := self._adamw.state.get(part)) is None:
                continue
            for name, place in self._places.items():
                if start <= place.start < start + part.numel():
                    own, shape = slice(place.start - start, place.stop - start), self._trained[name].shape
                    state[f"step.{name}"] = moments["step"].clone()
                    state |= {f"{moment}.{name}": moments[moment][own].view(shape) for moment in MOMENTS[1:]}
        return state

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(saved[f"weight.{name}"])
        self._weights.copy_(self._masters)
        flat = {moment: torch.zeros_like(self._masters) for moment in MOMENTS[1:]}
        steps = self._masters.new_zeros(())
        for moment, buffer in flat.items():
            for name, view in self._views(buffer).items():
                if f"{moment}.{name}" in saved:
                    view.copy_(saved[f"{moment}.{name}"])
                    steps = saved[f"step.{name}"].to(self._masters.device)
        for start, group in zip(self._starts, self._adamw.param_groups, strict=True):
            (part,) = group["params"]
            own = slice(start, start + part.numel())
            self._adamw.state[part] = {
                "step": steps.clone(), **{moment: buffer[own] for moment, buffer in flat.items()}
            }  # fmt: skip

    def close(self) -> None:
        for name, parameter in self._trained.items():
            # A copy: a model whose weights share a buffer cannot be saved.
            parameter.grad, parameter.data = None, self.weights[name].clone()
        for parameter, original in self._frozen:
            parameter.data = original.to(parameter.device)
