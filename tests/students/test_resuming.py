"""A training that is killed and started again, and one that does not fit memory."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.store import Store
from retort.students.batching import Indices, bins_of, packed_batches
from retort.students.checkpoints import StoredCheckpoint, checkpoint_folder, discard_checkpoint
from retort.students.training import fit

CPU = Device("cpu", "fp32", 1)
TRAINING = TrainingConfig(epochs=10, learning_rate=1e-2, batch_tokens=16, precision="fp32", warmup_share=0.2)


class Lines:
    """A regression with dropout, whose random numbers a resumed training must draw on from where it was."""

    def __init__(self, most_rows: int = 100) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        # Many a pretrained encoder has a layer on top that a student never asks.
        self.model.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
        self._x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        self._most_rows, self.steps, self.die_at = most_rows, 0, -1
        self.largest = 0

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return np.array_split(generator.permutation(40), -(-40 // budget_tokens))

    def units(self, rows: Indices) -> int:
        return len(rows)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        return len(rows), len(rows)

    def loss(self, rows: Indices) -> Tensor:
        self.steps += 1
        if self.steps == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(rows) > self._most_rows:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        self.largest = max(self.largest, len(rows))
        x = self._x[torch.from_numpy(rows)]
        return ((self.model(x)[:, 0] - x.sum(-1)) ** 2).sum()


def trained(lines: Lines, **options: Any) -> list[Tensor]:
    fit(lines.model, lines, TRAINING, seed=3, device=CPU, **options)
    return [parameter.detach().clone() for parameter in lines.model.parameters()]


KILLED = """
    import runpy, sys
    module = runpy.run_path(sys.argv[1])
    lines = module["Lines"]()
    lines.die_at = 14
    checkpoint = module["StoredCheckpoint"](module["Store"](sys.argv[2]), "k" * 64, seconds_between=0)
    import torch
    torch.set_num_threads(1)
    module["trained"](lines, checkpoint=checkpoint)
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(Lines())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), __file__, str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    store, key = Store(str(tmp_path)), "k" * 64
    lines, checkpoint = Lines(), StoredCheckpoint(store, key)
    assert checkpoint.load() is not None
    resumed = trained(lines, checkpoint=checkpoint)
    assert lines.steps == 30 - 13, "3 steps in each of 10 epochs, of which 13 were kept"
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    discard_checkpoint(store, key)
    assert checkpoint.load() is None


def test_the_state_of_another_model_or_a_torn_file_is_no_start(tmp_path: Path) -> None:
    store, whole = Store(str(tmp_path)), trained(Lines())
    other = Lines()
    other.model.append(torch.nn.Linear(1, 1))
    trained(other, checkpoint=StoredCheckpoint(store, "a" * 64, seconds_between=0))
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole, trained(Lines(), checkpoint=StoredCheckpoint(store, "a" * 64)), strict=True)
    )
    file = tmp_path / checkpoint_folder("a" * 64) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    assert StoredCheckpoint(store, "a" * 64).load() is None


def test_a_checkpoint_is_due_after_its_time_only(tmp_path: Path) -> None:
    checkpoint = StoredCheckpoint(Store(str(tmp_path)), "a" * 64, seconds_between=1000)
    trained(Lines(), checkpoint=checkpoint)
    assert checkpoint.load() is None


def test_what_does_not_fit_memory_is_halved_in_place() -> None:
    """13 or 14 rows in a step: quarters of at most 4 fit."""

    def without_dropout(most_rows: int) -> Lines:
        lines = Lines(most_rows)
        lines.model[1].p = 0.0  # type: ignore[assignment]
        return lines

    whole, small = without_dropout(100), without_dropout(4)
    for one, other in zip(trained(whole), trained(small), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert (whole.largest, small.largest) == (14, 4)


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        trained(Lines(0))


def test_packed_batches_hold_every_row_once_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 60, size=200)
    batches = packed_batches(lengths, 100, generator)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(lengths[batch].sum() <= 100 for batch in batches)
    assert packed_batches(np.array([500]), 100, generator)[0].tolist() == [0]


def test_bins_hold_every_row_once_and_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=200)
    bins = bins_of(lengths, 100)
    assert sorted(place for places in bins for place in places) == list(range(200))
    assert all(lengths[places].sum() <= 100 for places in bins)
    assert len(bins) <= 11 / 9 * -(-lengths.sum() // 100) + 1
    assert bins_of(np.array([500, 20]), 100) == [[0], [1]]
