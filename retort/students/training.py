"""The training engine: steps of a fixed number of tokens, in parts that fit memory, resumed where they broke off.

What is learnt is the business of `Lessons`; encoders' are here, those of students that write are in `writing.py`.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.config import TrainingConfig
from retort.method.objectives import cross_entropy
from retort.students.base import Checkpoint, History, Progress
from retort.students.batching import Indices, token_batches
from retort.students.device import Device
from retort.students.encoder import EncodedRow, Encoder


class Lessons(Protocol):
    """Rows as tensors of a model, and what is minimised on them."""

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        """All rows, each once, cut into steps of at most so many tokens, padding included (one row at least)."""
        ...

    def units(self, rows: Indices) -> int:
        """Over how many units, or target tokens, the objective of these rows is a sum."""
        ...

    def tokens(self, rows: Indices) -> tuple[int, int]:
        """(real tokens, computed tokens) of these rows."""
        ...

    def loss(self, rows: Indices) -> Tensor:
        """The objective summed over the units of these rows, a scalar. It is called under autocast."""
        ...


def fit(
    model: torch.nn.Module,
    lessons: Lessons,
    training: TrainingConfig,
    *,
    seed: int,
    device: Device,
    micro_batches: int = 1,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total, note: None,
) -> History:
    """Train what of `model` requires a gradient, in place, deterministically on one machine.

    A step is `training.batch_tokens` on every device: where they do not fit memory, it is cut into twice as many
    parts, whose gradients add up to the same but for rounding. Resumed from a checkpoint on the same device, the
    weights are bitwise those of a training that was not interrupted.
    """
    _make_deterministic(seed)
    model.to(device.name).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trained, training)
    batches = _schedule(lessons, training, seed)
    rate, log_every = _warmup_then_linear(len(batches), training.warmup_share), max(1, len(batches) // 100)
    run = _Run(parts=micro_batches)
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        run = _restored(saved, trained, optimizer) or run
    started = time.monotonic() - run.history.seconds
    for step, batch in enumerate(batches[run.step :], start=run.step + 1):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate(step - 1)
        run.add(_gradients(optimizer, lessons, batch, device, run), lessons, batch)
        torch.nn.utils.clip_grad_norm_(trained.values(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.step = step
        if step % log_every == 0 or step == len(batches):
            run.log(training.learning_rate * rate(step - 1))
            progress(step, len(batches), f"loss {run.history.losses[-1]:.3f}")
        if checkpoint is not None and step < len(batches) and checkpoint.is_due():
            run.history.seconds = time.monotonic() - started
            checkpoint.save(*_saved(run, trained, optimizer))
    run.finish(time.monotonic() - started)
    return run.history


class _Run:
    """How far a training is, and what it has seen."""

    def __init__(self, parts: int) -> None:
        self.step = 0
        self.parts = parts
        self.history = History()
        self.rows = self.tokens = self.computed = 0
        self.losses: list[float] = []
        """Since the last entry of the history."""

    def add(self, loss: float, lessons: Lessons, batch: Indices) -> None:
        tokens, computed = lessons.tokens(batch)
        self.rows += len(batch)
        self.tokens += tokens
        self.computed += computed
        self.losses.append(loss)

    def log(self, learning_rate: float) -> None:
        self.history.steps.append(self.step)
        self.history.losses.append(math.fsum(self.losses) / len(self.losses))
        self.history.learning_rates.append(learning_rate)
        self.losses.clear()

    def finish(self, seconds: float) -> None:
        self.history.seconds = seconds
        self.history.examples_per_second = self.rows / seconds
        self.history.tokens, self.history.padding_share = self.tokens, 1 - self.tokens / self.computed


def _gradients(optimizer: torch.optim.Optimizer, lessons: Lessons, batch: Indices, device: Device, run: _Run) -> float:
    """Of the mean objective over the batch's units; returns that mean. Halves the parts until they fit memory."""
    generators = _random_states(device.name == "cuda")
    while True:
        try:
            return _accumulated(lessons, batch, device, run.parts)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or run.parts >= len(batch):
                raise
        # Outside of the handler, whose traceback holds the tensors that were too many.
        run.parts *= 2
        optimizer.zero_grad(set_to_none=True)
        _set_random_states(generators)
        if device.name == "cuda":
            torch.cuda.empty_cache()


def _accumulated(lessons: Lessons, batch: Indices, device: Device, parts: int) -> float:
    units, total = lessons.units(batch), 0.0
    for part in np.array_split(batch, min(parts, len(batch))):
        with device.autocast():
            summed = lessons.loss(part)
        loss = summed / units
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _is_out_of_memory(error: BaseException) -> bool:
    """A processor's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _random_states(is_cuda: bool) -> dict[str, Tensor]:
    """Of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if is_cuda:
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of each parameter."""


def _saved(
    run: _Run, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], str]:
    is_cuda = next(iter(trained.values())).is_cuda
    tensors = {f"random.{name}": state for name, state in _random_states(is_cuda).items()}
    for name, parameter in trained.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].contiguous()
    return tensors, json.dumps({**vars(run), "history": asdict(run.history)})


def _restored(
    saved: tuple[dict[str, Tensor], str], trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> _Run | None:
    """None where it is the state of another model or device, of an older Retort: training begins anew."""
    tensors, state = saved
    wanted = {f"weight.{name}": parameter.shape for name, parameter in trained.items()}
    is_cuda = next(iter(trained.values())).is_cuda
    if {k: v.shape for k, v in tensors.items() if k.startswith("weight.")} != wanted or (
        is_cuda != ("random.cuda" in tensors)
    ):
        return None
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[f"weight.{name}"])
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
        optimizer.state[parameter] = moments
    _set_random_states({name.removeprefix("random."): v for name, v in tensors.items() if name.startswith("random.")})
    run = _Run(parts=1)
    vars(run).update(json.loads(state))
    run.history = History(**vars(run)["history"])
    return run


def _schedule(lessons: Lessons, training: TrainingConfig, seed: int) -> list[Indices]:
    """The batches of all epochs, fixed in advance; the last epoch may be a part of one."""
    generator = np.random.default_rng(seed)

    def epochs() -> Iterator[Indices]:
        remaining = training.epochs
        while remaining > 0:
            batches = lessons.batches(training.batch_tokens, generator)
            yield from batches[: math.ceil(len(batches) * min(1.0, remaining))]
            remaining -= 1

    return list(epochs())


def _make_deterministic(seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # the one attention kernel that only warns
    # A debugging aid that comes with it: filling every new tensor costs a tenth of the time.
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
    """Their weights are left as they are while the model is trained."""
    weights = [weight for module in modules for weight in module.parameters()]
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Encoded inputs with a target for each unit."""

    rows: Sequence[EncodedRow]
    targets: Sequence[NDArray[np.int64] | NDArray[np.float32]]
    """Class indices `(units,)`, or probabilities `(units, classes)`."""


class _UnitLessons:
    """Of an encoder: the class of each unit."""

    def __init__(self, encoder: Encoder, data: TrainingRows) -> None:
        self._encoder, self._data = encoder, data
        self._lengths = np.array([len(row.token_ids) for row in data.rows], dtype=np.int64)

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return token_batches(self._lengths, budget_tokens, generator)

    def units(self, rows: Indices) -> int:
        return sum(int((self._data.rows[i].positions >= 0).sum()) for i in rows)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        lengths = self._lengths[rows]
        return int(lengths.sum()), int(lengths.max()) * len(rows)

    def loss(self, rows: Indices) -> Tensor:
        data = self._data
        targets = np.concatenate([data.targets[i][data.rows[i].positions >= 0] for i in rows])
        logits = self._encoder.unit_logits([data.rows[i] for i in rows])
        return cross_entropy(logits, torch.from_numpy(targets).to(logits.device)).sum()


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
) -> History:
    """An encoder, see `fit`."""
    with frozen([encoder.model.get_input_embeddings()] if training.freeze_embeddings else []):
        return fit(
            encoder.model,
            _UnitLessons(encoder, data),
            training,
            seed=seed,
            device=device,
            micro_batches=micro_batches,
            checkpoint=checkpoint,
            progress=progress,
        )
