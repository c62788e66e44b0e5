"""Runs that are killed: at writes of the store, and at random moments."""

import shutil
import signal
from collections.abc import Callable, Iterable
from itertools import cycle, takewhile
from pathlib import Path
from typing import Any

import pytest

from chaos_runs import WHERE, Kill

SIGNS = (signal.SIGKILL, signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_is_killed_at_a_write_goes_on(
    chaos: Any, chosen_writes: list[int], in_time: Callable[[], bool], temporary: Path, tmp_path: Path
) -> None:
    kills = (
        Kill(sign, at_write=write, where=where)
        for write, sign, where in zip(chosen_writes, cycle(SIGNS), cycle(WHERE), strict=False)
    )
    check(chaos, takewhile(lambda _: in_time(), kills), temporary, tmp_path / "store")


@pytest.mark.slow
def test_a_run_that_is_killed_at_a_random_moment_goes_on(
    chaos: Any, moments: list[float], in_time: Callable[[], bool], temporary: Path, tmp_path: Path
) -> None:
    kills = (Kill(sign, after_seconds=moment) for moment, sign in zip(moments, cycle(SIGNS), strict=False))
    check(chaos, takewhile(lambda _: in_time(), kills), temporary, tmp_path / "store")


def check(chaos: Any, kills: Iterable[Kill], temporary: Path, root: Path) -> None:
    for kill in kills:
        chaos.killed(root, kill)
        assert list(temporary.glob("retort-scratch-*")) == [], "the resumed run swept what the killed one left"
        shutil.rmtree(root)
