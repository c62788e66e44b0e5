"""The training loop: steps of a fixed number of tokens, in parts that fit memory, resumable from a checkpoint.

The loop works on any `TrainingData`. That of encoders is here, that of generative students in `generative_data.py`.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device, random_states, set_random_states
from retort.records.base import Progress
from retort.students.acceleration import acceleration
from retort.students.accumulation import Gradients
from retort.students.base import Checkpoint, History
from retort.students.batching import Indices, token_batches
from retort.students.data_parallel import is_first, loaded, of_first, same_as_first, seed_step
from retort.students.early_stopping import EarlyStopping
from retort.students.encoder import EncodedRow, Encoder
from retort.students.losses import cross_entropy
from retort.students.optimizer import FlatAdamW, Optimizer, Parameters, PlainAdamW
from retort.students.ragged import Ragged
from retort.students.schedule import Schedule
from retort.students.sharding import ShardedAdamW, Sharding, gathered, must_shard
from retort.students.training_data import IGNORED, Inputs, PaddedTrainingData, TrainingData, padded


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
    and end with the same weights, but for rounding and dropout's random numbers those of one process. If the model does
    not fit a GPU, they divide it among them (see `sharding`). Raises ConfigError if it does not fit theirs.
    """
    _make_deterministic(seed)
    sharding = _placed(model, device)
    # Named before the first pass, after which those of a model in parts are others.
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    schedule = Schedule(data, training, seed)
    num_steps = len(schedule)
    rate, log_every = _learning_rates(training, num_steps), max(1, num_steps // 100)
    with acceleration(model, [data, *([held_out] if held_out else [])], schedule, device) as compiled:
        optimizer = _optimizer(model, trained, training, device, sharding)
        early_stopping = None
        if held_out is not None:
            early_stopping = EarlyStopping(held_out, training, schedule, model, optimizer.weights, compiled)
        run = _resumed(checkpoint, optimizer, early_stopping, device) or _Run(parts=micro_batches)
        gradients = Gradients(data, optimizer, device, run.parts, compiled, sharding)
        started = time.monotonic() - run.history.seconds
        for step, batch in enumerate(schedule.after(run.step), start=run.step + 1):
            seed_step(seed, step)
            run.add(gradients.add(batch), data, batch)
            optimizer.step(rate(step))
            run.step, run.parts = step, gradients.parts
            ended = early_stopping is not None and early_stopping.ends(step, run.history, gradients.device, run.parts)
            if step % log_every == 0 or step == num_steps or ended:
                run.log(rate(step))
                progress(step, num_steps, f"loss {run.history.losses[-1]:.3f}")
            if ended:
                break
            if checkpoint is not None and step < num_steps and _is_due(checkpoint, sharding):
                run.history.seconds = time.monotonic() - started
                _save(checkpoint, run, optimizer, early_stopping, device)
        if early_stopping:
            early_stopping.keep_best()
        optimizer.close()
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


def _is_due(checkpoint: Checkpoint, sharding: Sharding | None) -> bool:
    """Whether this process takes part in saving a checkpoint now."""
    is_due = is_first() and checkpoint.is_due()
    return is_due if sharding is None else of_first(is_due)


def _save(
    checkpoint: Checkpoint, run: _Run, optimizer: Optimizer, early_stopping: EarlyStopping | None, device: Device
) -> None:
    """All processes gather the tensors, and the first saves them."""
    tensors = {f"random.{name}": state for name, state in random_states(device).items()}
    tensors |= {f"weight.{name}": gathered(weight).contiguous() for name, weight in optimizer.weights.items()}
    tensors |= optimizer.state()
    if is_first():
        tensors |= early_stopping.tensors() if early_stopping else {}
        state = {**vars(run), "losses": [*map(float, run.losses)], "history": asdict(run.history)}
        checkpoint.save(tensors, json.dumps(state))


def _resumed(
    checkpoint: Checkpoint | None, optimizer: Optimizer, early_stopping: EarlyStopping | None, device: Device
) -> _Run | None:
    """None without a checkpoint, or if it belongs to another model or device, or to an older Retort: training then
    starts over."""
    saved = None if checkpoint is None else loaded(checkpoint, shares_out=isinstance(optimizer, ShardedAdamW))
    if saved is None:
        return None
    tensors, state = saved
    wanted = {f"weight.{name}": weight.shape for name, weight in optimizer.weights.items()}
    if {k: v.shape for k, v in tensors.items() if k.startswith("weight.")} != wanted or (
        (device.name == "cuda") != ("random.cuda" in tensors)
    ):
        return None
    optimizer.restore(tensors)
    set_random_states({name.removeprefix("random."): v for name, v in tensors.items() if name.startswith("random.")})
    run = _Run(parts=1)
    vars(run).update(json.loads(state))
    run.history = History(**vars(run)["history"])
    if early_stopping:
        early_stopping.restore(tensors)
    return run


def _make_deterministic(seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # the one attention kernel that has no deterministic form
    # The others are told of at each training; only `warn_only=False` makes them so, which other kernels cannot do.
    warnings.filterwarnings("ignore", message=".*Attention defaults to a non-deterministic algorithm")
    # A debugging aid that deterministic mode turns on: filling every new tensor costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _placed(model: torch.nn.Module, device: Device) -> Sharding | None:
    """Moves the model to where it trains, with the first process's weights; in parts if the processes divide it."""
    shards = must_shard(model, device)
    (model if shards else model.to(device.name)).train()
    same_as_first([weight.data for weight in model.parameters() if weight.requires_grad])
    return Sharding(model, device) if shards else None


def _optimizer(
    model: torch.nn.Module, trained: Parameters, training: TrainingConfig, device: Device, sharding: Sharding | None
) -> Optimizer:
    if sharding is not None:
        return ShardedAdamW(sharding, trained, training)
    if device.name == "cpu" and device.precision == "fp32":
        return PlainAdamW(trained, training)
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    return FlatAdamW(model, trained, training, dtype)


def _learning_rates(training: TrainingConfig, num_steps: int) -> Callable[[int], float]:
    """The learning rate of each step, from step 1: it rises during the warm-up, and falls from then on."""
    warmup = round(num_steps * training.warmup_share)

    def rate(step: int) -> float:
        if step <= warmup:
            return training.learning_rate * (step / warmup)
        return training.learning_rate * max(0.0, (num_steps - step + 1) / max(1, num_steps - warmup))

    return rate


@contextlib.contextmanager
def frozen(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Excludes the modules' weights from training inside the context, which may replace them by others."""
    before = [weight.requires_grad for module in modules for weight in module.parameters()]
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        weights = [weight for module in modules for weight in module.parameters()]
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
