"""Trainings by one process or by two that train together, for `torch.multiprocessing`, which imports this module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
from retort.students.loading import new_student
from separable_slots import SLOTS, separable_rows
from watched_training import Rows, fitted
from watched_training import training as watched

TRAINING = TrainingConfig(epochs=2, learning_rate=5e-3, batch_tokens=128, precision="fp32", weight_decay=0.1)
ONE_ROW = TRAINING.model_copy(update={"batch_tokens": 8, "epochs": 0.2})
KINDS = ("encoder", "t5", "causal")
CPU = Device("cpu", "fp32", 1)


def student_of(kind: str, folders: dict[str, Path]) -> Student:
    """A student before its training, always the same, without dropout: its numbers differ from process to process."""
    if kind == "encoder":
        config = TokenClassificationConfig(kind="token-classification", model=str(folders[kind]))
        torch.manual_seed(0)
        student: Student = new_student(config, find_weights(config), pretrained=True, problem=SLOTS)
    else:
        student = builder(folders, SLOTS, TRAINING)(kind)
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
    weights = {name: weight.detach() for name, weight in student.model.named_parameters()}
    return {**weights, "losses": torch.tensor(history.losses, dtype=torch.float64)}


def of_watched() -> dict[str, Tensor]:
    data = Rows()
    data.model[2].p = 0.0  # type: ignore[index]
    history = fitted(data, watched())
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


def main(number: int, folder: Path, folders: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    store = Store(str(folder / "store"))
    with joined(Rank(number, 2, str(folder / "rendezvous"))):
        for name, training in trainings(folders, store).items():
            save_file({key: own.contiguous() for key, own in training().items()}, file_of(folder, name, number))


def result_of(folder: Path, name: str, number: int = 0) -> dict[str, Tensor]:
    return load_file(file_of(folder, name, number))


def file_of(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number}.safetensors"
