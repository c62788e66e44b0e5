"""A training that is killed and started again, and one that does not fit memory."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from resumable_training import Lines, trained
from retort.store import Store
from retort.students.batching import bins_of, packed_batches
from retort.students.checkpoints import StoredCheckpoint, checkpoint_folder, discard_checkpoint

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
KILLED = """
    import sys
    import torch
    from resumable_training import Lines, trained
    from retort.store import Store
    from retort.students.checkpoints import StoredCheckpoint
    torch.set_num_threads(1)
    lines = Lines()
    lines.die_at = 14
    trained(lines, checkpoint=StoredCheckpoint(Store(sys.argv[1]), "k" * 64, seconds_between=0))
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(Lines())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600)
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


def test_saving_takes_a_tenth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("retort.students.checkpoints.time.monotonic", lambda: clock[0])
    checkpoint = StoredCheckpoint(Store(str(tmp_path)), "a" * 64)
    clock[0] = 45.0
    assert checkpoint.is_due()
    clock[0] += 20.0  # of gathering and saving
    checkpoint.save({"weight": torch.zeros(2)}, "{}")
    clock[0] += 179.0
    assert not checkpoint.is_due()
    clock[0] += 2.0
    assert checkpoint.is_due()
    checkpoint.save({"weight": torch.zeros(2)}, "{}")  # the bucket is fast again
    clock[0] += 46.0
    assert checkpoint.is_due()


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
