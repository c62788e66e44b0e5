"""Runs that are killed: at writes of the store, and at random moments."""

import itertools
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from chaos_runs import WHERE, Kill

SIGNS = (signal.SIGKILL, signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_is_killed_at_a_write_goes_on(
    chaos: Any, chosen_writes: list[int], temporary: Path, tmp_path: Path
) -> None:
    for number, (write, where) in enumerate(zip(chosen_writes, itertools.cycle(WHERE))):
        chaos.killed(tmp_path / "store", Kill(SIGNS[number % 2], at_write=write, where=where))
        assert list(temporary.glob("retort-scratch-*")) == [], "the resumed run swept what the killed one left"
        shutil.rmtree(tmp_path / "store")


@pytest.mark.slow
def test_a_run_that_is_killed_at_a_random_moment_goes_on(
    chaos: Any, moments: int, temporary: Path, tmp_path: Path
) -> None:
    chosen = random.Random(0)
    for number in range(moments):
        kill = Kill(SIGNS[number % 2], after_seconds=chosen.uniform(0.0, chaos.seconds))
        chaos.killed(tmp_path / "store", kill)
        assert list(temporary.glob("retort-scratch-*")) == [], "the resumed run swept what the killed one left"
        shutil.rmtree(tmp_path / "store")
