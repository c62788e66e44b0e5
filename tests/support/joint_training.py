"""Trainings by one process or by two that train together, for `torch.multiprocessing`, which imports this module."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from generative_students import builder
from resumable_training import Lines, trained
from retort.config import TokenClassificationConfig, TrainingConfig
from retort.models.device import Device
from retort.models.weights import find_weights
from retort.records.rank import Rank
from retort.store import Store
from retort.students.base import Checkpoint, Student
from retort.students.checkpoints import StoredCheckpoint
from retort.students.data_parallel import is_first, joined
from retort.students.generative_data import CausalTrainingData
from retort.students.loading import new_student
from retort.students.sharding import Sharding
from separable_slots import SLOTS, separable_rows
from watched_training import Rows, fitted
from watched_training import training as watched

TRAINING = TrainingConfig(epochs=2, learning_rate=5e-3, batch_tokens=128, precision="fp32", weight_decay=0.1)
ONE_ROW = TRAINING.model_copy(update={"batch_tokens": 8, "epochs": 0.2})
Trainings = Callable[[dict[str, Path], Store], dict[str, Callable[[], dict[str, Tensor]]]]
KINDS = ("encoder", "t5", "causal")
CPU = Device("cpu", "fp32", 1)
TOLERANCE = 1e-4
"""Of the losses, relative: floats are added in another order, and AdamW magnifies that where a gradient is near 0."""


def assert_nearly_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, own in ours.items():
        torch.testing.assert_close(own, theirs[name], rtol=1e-3, atol=1e-4)


def assert_learned_alike(start: dict[str, Tensor], alone: dict[str, Tensor], together: dict[str, Tensor]) -> None:
    torch.testing.assert_close(together["losses"], alone["losses"], rtol=TOLERANCE, atol=0)
    apart = sum(float((together[name] - alone[name]).abs().sum()) for name in start)
    moved = sum(float((alone[name] - weight).abs().sum()) for name, weight in start.items())
    assert apart < moved / 100


def student_of(kind: str, folders: dict[str, Path]) -> Student:
    """A student before its training, always the same, without dropout: its numbers differ from process to process."""
    if kind == "encoder":
        config = TokenClassificationConfig(kind="token-classification", model=str(folders[kind]))
        torch.manual_seed(0)
        student: Student = new_student(config, find_weights(config), pretrained=True, problem=SLOTS)
    else:
        name, _, lora = kind.partition(" with ")
        student = builder(folders, SLOTS, TRAINING)(name, **({"lora": {"rank": 4}} if lora else {}))
    for module in student.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    return student


class SavedOnce(StoredCheckpoint):
    """Saves after one step, as if the training had been killed soon after."""

    def __init__(self, store: Store, key: str, step: int = -1) -> None:
        super().__init__(store, key)
        self._steps_left = step

    def is_due(self) -> bool:
        self._steps_left -= 1
        return self._steps_left == 0


def lines(checkpoint: Checkpoint | None = None, *, dropout: float = 0.3, most_rows: int = 100) -> dict[str, Tensor]:
    """The weights of a regression after 30 steps."""
    data = Lines(most_rows)
    data.model[1].p = dropout  # type: ignore[assignment]
    return {str(at): weight for at, weight in enumerate(trained(data, checkpoint=checkpoint))}


def of_student(kind: str, folders: dict[str, Path], **options: Any) -> dict[str, Tensor]:
    """The weights and the losses of a student."""
    student = student_of(kind, folders)
    training = options.pop("training", TRAINING)
    history = student.train(separable_rows(60, 7), training, seed=0, device=CPU, **options).history
    assert kind == ADAPTERS or all(weight.requires_grad for weight in student.model.parameters()), (
        "as before the training"
    )
    weights = {name: weight.detach() for name, weight in student.model.named_parameters()}
    return {**weights, "losses": torch.tensor(history.losses, dtype=torch.float64)}


class Layers(Lines):
    """Likewise, by a model of layers, one of which may be out of memory."""

    def __init__(self, most_rows: int = 100, fails: str = "") -> None:
        super().__init__(100)
        self.model = Stack()
        self.model.body[1].register_forward_hook(lambda layer, given, made: self._out(made, most_rows, fails))

    def _out(self, made: Tensor, most_rows: int, fails: str) -> None:
        def fail(gradient: Tensor) -> None:
            raise torch.OutOfMemoryError

        if len(made) > most_rows and fails == "backward":
            made.register_hook(fail)
        elif len(made) > most_rows:
            fail(made)


class Stack(torch.nn.Module):
    """Layers that are gathered one by one, as transformers' are, under a head."""

    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.ModuleList([Layer(3, 8), Layer(8, 8), Layer(8, 8)])
        self.head = torch.nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return self.head(x)


class Layer(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def layers(most_rows: int = 100, fails: str = "") -> dict[str, Tensor]:
    """The weights of a regression by layers after 30 steps."""
    return {str(at): weight for at, weight in enumerate(trained(Layers(most_rows, fails)))}


def of_watched(checkpoint: Checkpoint | None = None, *, fails_at: int = 0) -> dict[str, Tensor]:
    """In the training pass of that number, counted from 1, memory is too small."""
    data, passes = Rows(), itertools.count(1)

    def look(model: torch.nn.Module, given: Any, made: Any) -> None:
        if model.training and next(passes) == fails_at:
            raise torch.OutOfMemoryError

    data.model.register_forward_hook(look)
    data.model[2].p = 0.0  # type: ignore[index]
    history = fitted(data, watched(), checkpoint=checkpoint)
    kept = {name: weight.detach() for name, weight in data.model.named_parameters()}
    return {**kept, "held_out": torch.tensor(history.held_out_losses, dtype=torch.float64)}


def trainings(folders: dict[str, Path], store: Store) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """What both processes do, by name, one after the other."""
    return {
        **{kind: lambda kind=kind: of_student(kind, folders) for kind in KINDS},  # type: ignore[misc]
        "one row a step": lambda: of_student("encoder", folders, training=ONE_ROW),
        "dropout": lines,
        "dropout, saved": lambda: lines(SavedOnce(store, "d" * 64, 13)),
        "dropout, resumed": lambda: lines(SavedOnce(store, "d" * 64)),
        "saved by two": lambda: lines(SavedOnce(store, "2" * 64, 13), dropout=0),
        "saved by one": lambda: lines(SavedOnce(store, "1" * 64), dropout=0),
        "no memory in one": lambda: lines(dropout=0, most_rows=100 if is_first() else 2),
        "watched": of_watched,
    }


ADAPTERS = "causal with adapters"
SHARDED = (
    *KINDS,
    ADAPTERS,
    "one row a step",
    "dropout",
    "watched",
    "no memory in a forward pass",
    "no memory in a backward pass",
)


def sharded_trainings(folders: dict[str, Path], store: Store) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Likewise, if the two divide the weights among them."""
    few = 100 if is_first() else 2
    return {
        **trainings(folders, store),
        ADAPTERS: lambda: of_student(ADAPTERS, folders),
        "prepared": lambda: of_prepared(folders),
        "watched, saved by two": lambda: of_watched(SavedOnce(store, "c" * 64, 13)),
        "watched, saved by one": lambda: of_watched(SavedOnce(store, "b" * 64)),
        "no memory in a forward pass": lambda: layers(few, "forward"),
        "no memory in a backward pass": lambda: layers(few, "backward"),
        # The first pass after held-out rows were looked at.
        "watched, no memory in one": lambda: of_watched(fails_at=0 if is_first() else 7),
        **{f"{kind}, held": lambda kind=kind: of_sharded(kind, folders) for kind in KINDS},  # type: ignore[misc]
    }


def of_prepared(folders: dict[str, Path]) -> dict[str, Tensor]:
    """Of a student whose output layer computes its loss, as on a GPU, which passes before the training find out."""

    @contextmanager
    def prepared(model: torch.nn.Module, data: list[CausalTrainingData], *others: Any) -> Iterator[None]:
        data[0].prepare(CPU)
        assert data[0].kernels
        yield

    with mock.patch("retort.students.training.acceleration", prepared):
        return of_student("causal-text", folders)


def of_sharded(kind: str, folders: dict[str, Path]) -> dict[str, Tensor]:
    """How many weights a student has, and how many of them a process holds between two passes."""
    model = student_of(kind, folders).model
    whole = sum(own.numel() for own in model.parameters())
    Sharding(model, CPU)
    held = sum(cast(DTensor, own).to_local().numel() for own in model.parameters())
    return {"numbers": torch.tensor([whole, held])}


def main(number: int, folder: Path, folders: dict[str, Path], of: Trainings = trainings) -> None:
    torch.set_num_threads(1)
    store = Store(str(folder / "store"))
    with joined(Rank(number, 2, str(folder / "rendezvous"))):
        for name, training in of(folders, store).items():
            save_file({key: own.contiguous() for key, own in training().items()}, file_of(folder, name, number))


def sharded_main(number: int, folder: Path, folders: dict[str, Path]) -> None:
    """Likewise with models whose weights the two share, as if no GPU had room for the whole."""
    with mock.patch("retort.students.training.must_shard", return_value=True):
        main(number, folder, folders, sharded_trainings)


def result_of(folder: Path, name: str, number: int = 0) -> dict[str, Tensor]:
    return load_file(file_of(folder, name, number))


def file_of(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number}.safetensors"


def assert_resumed_alike(joint: Path) -> None:
    """What one process saved two have gone on with, and one goes on with what two saved; `joint` is their folder."""
    alone, store = lines(dropout=0), Store(str(joint / "store"))
    assert_nearly_equal(result_of(joint, "saved by one"), alone)
    resumed = SavedOnce(store, "2" * 64)
    assert resumed.load() is not None
    assert_nearly_equal(lines(resumed, dropout=0), alone)
