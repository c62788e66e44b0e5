"""Training of an encoder student on hard or soft labels."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.config import TrainingConfig
from retort.method.objectives import cross_entropy
from retort.students.batching import Indices, token_batches
from retort.students.device import Device
from retort.students.encoder import EncodedRow, Encoder

Progress = Callable[[int, int, str], None]
"""done, total, what: `120, 480, "loss 0.31"`."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Encoded inputs with a target for each unit."""

    rows: Sequence[EncodedRow]
    targets: Sequence[NDArray[np.int64] | NDArray[np.float32]]
    """Class indices `(units,)`, or probabilities `(units, classes)`."""


@dataclass(slots=True)
class History:
    """What training went through: one entry for about each percent."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean objective over units since the entry before."""
    learning_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0
    examples_per_second: float = 0.0
    tokens: int = 0
    """Real tokens seen, all epochs."""
    padding_share: float = 0.0
    """Share of computed tokens that were padding."""


def train(
    encoder: Encoder,
    data: TrainingRows,
    training: TrainingConfig,
    *,
    seed: int,
    device: Device,
    micro_batches: int = 1,
    progress: Progress = lambda done, total, note: None,
) -> History:
    """Train in place, deterministically on one machine. `micro_batches` > 1 splits each step's rows to fit memory
    and accumulates, with the same gradient up to rounding."""
    _make_deterministic(seed)
    model = encoder.model.to(device.name)  # type: ignore[arg-type]
    model.train()
    if training.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    optimizer = _optimizer(model, training, device)
    batches = _schedule(data, training, seed)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_then_linear(len(batches), training.warmup_share))
    history, meter, started = History(), _Meter(), time.monotonic()
    log_every = max(1, len(batches) // 100)
    for step, batch in enumerate(batches, start=1):
        meter.add(_step(encoder, data, batch, device, micro_batches), data, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % log_every == 0 or step == len(batches):
            history.steps.append(step)
            history.losses.append(meter.mean_loss())
            history.learning_rates.append(float(scheduler.get_last_lr()[0]))
            progress(step, len(batches), f"loss {history.losses[-1]:.3f}")
        scheduler.step()
    history.seconds = time.monotonic() - started
    history.examples_per_second = meter.rows / history.seconds
    history.tokens, history.padding_share = meter.tokens, 1 - meter.tokens / meter.padded
    return history


def _step(encoder: Encoder, data: TrainingRows, batch: Indices, device: Device, micro_batches: int) -> float:
    """Gradients of the mean objective over the batch's units; returns that mean."""
    parts = [part for part in np.array_split(batch, micro_batches) if len(part)]
    units = sum(int((data.rows[i].positions >= 0).sum()) for i in batch)
    total = 0.0
    for part in parts:
        rows = [data.rows[i] for i in part]
        targets = torch.from_numpy(np.concatenate([data.targets[i][data.rows[i].positions >= 0] for i in part])).to(
            device.name
        )
        with device.autocast():
            logits = encoder.unit_logits(rows)
        loss: Tensor = cross_entropy(logits, targets).sum() / units
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


class _Meter:
    """Sums of what was seen; the loss since it was last read."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.padded = 0
        self._losses: list[float] = []

    def add(self, loss: float, data: TrainingRows, batch: Indices) -> None:
        lengths = [len(data.rows[i].token_ids) for i in batch]
        self.rows += len(batch)
        self.tokens += sum(lengths)
        self.padded += max(lengths) * len(lengths)
        self._losses.append(loss)

    def mean_loss(self) -> float:
        mean = math.fsum(self._losses) / len(self._losses)
        self._losses.clear()
        return mean


def _schedule(data: TrainingRows, training: TrainingConfig, seed: int) -> list[Indices]:
    """The batches of all epochs, fixed in advance; the last epoch may be a part of one."""
    lengths = np.array([len(row.token_ids) for row in data.rows])
    generator = np.random.default_rng(seed)

    def epochs() -> Iterator[Indices]:
        remaining = training.epochs
        while remaining > 0:
            batches = token_batches(lengths, training.batch_tokens, generator)
            yield from batches[: math.ceil(len(batches) * min(1.0, remaining))]
            remaining -= 1

    return list(epochs())


def _make_deterministic(seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # the one attention kernel that only warns
    # A debugging aid that comes with it: filling every new tensor costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _optimizer(model: torch.nn.Module, training: TrainingConfig, device: Device) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def _warmup_then_linear(steps: int, warmup_share: float) -> Callable[[int], float]:
    warmup = round(steps * warmup_share)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor
