"""The training loop: steps of a fixed number of tokens, in parts that fit memory, resumable from a checkpoint.

The loop works on any `TrainingData`. That of encoders is here, that of generative students in `generative_data.py`.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device, random_states, set_random_states
from retort.records.base import Progress
from retort.students.accumulation import Gradients
from retort.students.base import Checkpoint, History
from retort.students.batching import Indices, token_batches
from retort.students.cuda_graphs import use_fused_norms
from retort.students.data_parallel import is_first, loaded, same_as_first, seed_step
from retort.students.early_stopping import EarlyStopping
from retort.students.encoder import EncodedRow, Encoder
from retort.students.losses import cross_entropy
from retort.students.ragged import Ragged
from retort.students.training_data import IGNORED, Inputs, PaddedTrainingData, TrainingData, padded

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm."""


def fit(
    model: torch.nn.Module,
    data: TrainingData,
    training: TrainingConfig,
    *,
    seed: int,
    device: Device,
    micro_batches: int = 1,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total, note: None,
    held_out: TrainingData | None = None,
) -> History:
    """Trains the parameters of `model` that require gradients, in place, deterministically on one machine's CPU; on a
    GPU, the gradients of attention are summed in an order that varies.

    A step has `training.batch_tokens` tokens on every device. If they do not fit memory, the number of parts that it is
    split into is doubled; their gradients add up to the same, up to rounding. A training resumed from a checkpoint on
    the same device ends with bitwise the weights of an uninterrupted one. With `training.stopping`, the loss on
    `held_out` rows ends the training, and the best weights are kept.

    Processes that are `joined` (see `data_parallel`) train one model together: all call this with the same arguments
    and end with the same weights, but for rounding and dropout's random numbers those of one process.
    """
    _make_deterministic(seed)
    model.to(device.name).train()
    if device.name == "cuda":
        use_fused_norms(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    same_as_first([weight.data for weight in trained.values()])
    optimizer = _optimizer(trained, training)
    schedule = Schedule(data, training, seed)
    num_steps = len(schedule)
    rate, log_every = _warmup_then_linear(num_steps, training.warmup_share), max(1, num_steps // 100)
    run = _Run(parts=micro_batches)
    early_stopping = (
        None if held_out is None else EarlyStopping(held_out, training, schedule.epochs, num_steps, model, trained)
    )
    if checkpoint is not None and (saved := loaded(checkpoint)) is not None:
        run = _restored(saved, trained, optimizer) or run
        if early_stopping and run.step:
            early_stopping.restore(saved[0])
    gradients = Gradients(data, trained.values(), device, run.parts)
    started = time.monotonic() - run.history.seconds
    for step, batch in enumerate(schedule.after(run.step), start=run.step + 1):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate(step - 1)
        seed_step(seed, step)
        run.add(gradients.add(batch), data, batch)
        torch.nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM)
        optimizer.step()
        gradients.clear()
        run.step, run.parts = step, gradients.parts
        ended = early_stopping is not None and early_stopping.ends(step, run.history, device, run.parts)
        if step % log_every == 0 or step == num_steps or ended:
            run.log(training.learning_rate * rate(step - 1))
            progress(step, num_steps, f"loss {run.history.losses[-1]:.3f}")
        if ended:
            break
        if checkpoint is not None and is_first() and step < num_steps and checkpoint.is_due():
            run.history.seconds = time.monotonic() - started
            tensors, state = _saved(run, trained, optimizer, device)
            checkpoint.save({**tensors, **(early_stopping.tensors() if early_stopping else {})}, state)
    if early_stopping:
        early_stopping.keep_best()
    run.finish(time.monotonic() - started)
    return run.history


class _Run:
    """The progress of a training."""

    def __init__(self, parts: int) -> None:
        self.step = 0
        self.parts = parts
        self.history = History()
        self.rows = self.tokens = self.computed = 0
        self.losses: list[float | Tensor] = []
        """Losses since the history's last entry. A GPU's stay tensors until then, because reading them waits for it."""

    def add(self, loss: Tensor, data: TrainingData, batch: Indices) -> None:
        tokens, computed = data.tokens(batch)
        self.rows += len(batch)
        self.tokens += tokens
        self.computed += computed
        self.losses.append(loss)

    def log(self, learning_rate: float) -> None:
        self.history.steps.append(self.step)
        self.history.losses.append(math.fsum(map(float, self.losses)) / len(self.losses))
        self.history.learning_rates.append(learning_rate)
        self.losses.clear()

    def finish(self, seconds: float) -> None:
        self.history.seconds = seconds
        self.history.examples_per_second = self.rows / seconds
        self.history.tokens, self.history.padding_share = self.tokens, 1 - self.tokens / self.computed


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state per parameter."""


def _saved(
    run: _Run, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, device: Device
) -> tuple[dict[str, Tensor], str]:
    tensors = {f"random.{name}": state for name, state in random_states(device).items()}
    for name, parameter in trained.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        # A weight that the objective does not depend on has no state.
        tensors |= {f"{moment}.{name}": own.contiguous() for moment, own in optimizer.state.get(parameter, {}).items()}
    return tensors, json.dumps({**vars(run), "losses": [*map(float, run.losses)], "history": asdict(run.history)})


def _restored(
    saved: tuple[dict[str, Tensor], str], trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> _Run | None:
    """None if the state belongs to another model or device, or to an older Retort: training then starts over."""
    tensors, state = saved
    wanted = {f"weight.{name}": parameter.shape for name, parameter in trained.items()}
    is_cuda = next(iter(trained.values())).is_cuda
    if {k: v.shape for k, v in tensors.items() if k.startswith("weight.")} != wanted or (
        is_cuda != ("random.cuda" in tensors)
    ):
        return None
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[f"weight.{name}"])
        if f"{_MOMENTS[0]}.{name}" in tensors:
            moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
            optimizer.state[parameter] = moments
    set_random_states({name.removeprefix("random."): v for name, v in tensors.items() if name.startswith("random.")})
    run = _Run(parts=1)
    vars(run).update(json.loads(state))
    run.history = History(**vars(run)["history"])
    return run


class Schedule:
    """The batches of all epochs, fixed in advance: of as many epochs as `training` asks for, or of more until there are
    `min_updates` batches. The last epoch may be incomplete. Only one epoch's batches are in memory: they are made once
    to be counted, and again, from the same state of the generator, when their epoch begins."""

    def __init__(self, data: TrainingData, training: TrainingConfig, seed: int) -> None:
        self._data, self._budget_tokens = data, training.batch_tokens
        self._generator = np.random.default_rng(seed)
        self._parts: list[tuple[Mapping[str, Any], int]] = []
        """For each epoch, the generator's state at its beginning and its number of batches."""
        self.epochs = training.epochs
        per_epoch = self._add(min(1.0, training.epochs))
        for done in range(1, math.ceil(training.epochs)):
            self._add(min(1.0, training.epochs - done))
        if len(self) < training.min_updates:
            self.epochs = training.min_updates / per_epoch
            while (missing := training.min_updates - len(self)) > 0:
                self._add(1.0, missing)

    def __len__(self) -> int:
        return sum(count for _, count in self._parts)

    def after(self, step: int) -> Iterator[Indices]:
        """The batches without the first `step`."""
        for state, count in self._parts:
            if step < count:
                self._generator.bit_generator.state = state
                yield from self._epoch()[step:count]
            step = max(0, step - count)

    def _add(self, share: float, most: float = math.inf) -> int:
        """Add a share of an epoch, of at most so many batches. Returns how many a whole epoch has."""
        state = self._generator.bit_generator.state
        whole = len(self._epoch())
        self._parts.append((state, int(min(math.ceil(whole * share), most))))
        return whole

    def _epoch(self) -> list[Indices]:
        return self._data.batches(self._budget_tokens, self._generator)


def _make_deterministic(seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # the one attention kernel that has no deterministic form
    # The others are told of at each training; only `warn_only=False` makes them so, which other kernels cannot do.
    warnings.filterwarnings("ignore", message=".*Attention defaults to a non-deterministic algorithm")
    # A debugging aid that deterministic mode turns on: filling every new tensor costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _optimizer(trained: dict[str, torch.nn.Parameter], training: TrainingConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def _warmup_then_linear(steps: int, warmup_share: float) -> Callable[[int], float]:
    warmup = round(steps * warmup_share)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor


@contextlib.contextmanager
def frozen(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Excludes the modules' weights from training inside the context."""
    weights = [weight for module in modules for weight in module.parameters()]
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)


class TrainingRows:
    """Encoded rows with the targets of their units: for each row class indices `(units,)`, or probabilities
    `(units, classes)`. Memory holds 24 bytes a row, see `Ragged`."""

    def __init__(self, rows: Iterable[EncodedRow], targets: Iterable[NDArray[np.int64] | NDArray[np.float32]]) -> None:
        self.token_ids, self.positions, self.targets = Ragged(), Ragged(), Ragged()
        self.num_cut = 0
        """Rows of which units were cut off."""
        for row, target in zip(rows, targets, strict=True):
            self.token_ids.append(row.token_ids)
            self.positions.append(row.positions)
            self.targets.append(target)
            self.num_cut += bool((row.positions < 0).any())
        for own in (self.token_ids, self.positions, self.targets):
            own.close()

    def __len__(self) -> int:
        return len(self.token_ids)


class UnitTrainingData(PaddedTrainingData):
    """Training data of encoders: the class of each unit."""

    def __init__(self, encoder: Encoder, data: TrainingRows) -> None:
        self.model, self._encoder, self._data = encoder.model, encoder, data
        self._lengths = data.token_ids.lengths

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return token_batches(self._lengths, budget_tokens, generator)

    def units(self, rows: Indices) -> int:
        return sum(int((self._data.positions[i] >= 0).sum()) for i in rows)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        lengths = self._lengths[rows]
        return int(lengths.sum()), int(lengths.max()) * len(rows)

    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """`ids` and `mask` `(rows, length)`; the units' `positions` `(rows, units)`; `targets` `(rows, units)`, or
        `(rows, units, classes)` if soft. Units that were cut off are left out; padding has no target (soft: zeros)."""
        token_ids, positions, targets = (
            [own[i] for i in rows] for own in (self._data.token_ids, self._data.positions, self._data.targets)
        )
        kept = [one >= 0 for one in positions]
        nothing = 0.0 if targets[0].ndim == 2 else IGNORED
        ids, mask = self._encoder.tensors(token_ids, multiple)
        return {
            "ids": ids,
            "mask": mask,
            "positions": padded([one[own] for one, own in zip(positions, kept, strict=True)], 0, multiple).long(),
            "targets": padded([one[own] for one, own in zip(targets, kept, strict=True)], nothing, multiple),
        }

    def objective(self, inputs: Inputs) -> Tensor:
        logits, targets = self._encoder.logits(inputs["ids"], inputs["mask"]), inputs["targets"]
        if logits.ndim == 2:  # of the whole text, one unit
            return cross_entropy(logits, targets[:, 0]).sum()
        units = logits.gather(1, inputs["positions"][..., None].expand(-1, -1, logits.shape[-1]))
        return cross_entropy(units.flatten(0, 1), targets.flatten(0, 1)).sum()


def train(
    encoder: Encoder,
    data: TrainingRows,
    training: TrainingConfig,
    *,
    seed: int,
    device: Device,
    micro_batches: int = 1,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total, note: None,
    held_out: TrainingRows | None = None,
) -> History:
    """Trains an encoder; see `fit`."""
    with frozen([encoder.model.get_input_embeddings()] if training.freeze_embeddings else []):
        return fit(
            encoder.model,
            UnitTrainingData(encoder, data),
            training,
            seed=seed,
            device=device,
            micro_batches=micro_batches,
            checkpoint=checkpoint,
            progress=progress,
            held_out=None if held_out is None else UnitTrainingData(encoder, held_out),
        )
