"""What is around a run fails: the disk, the memory, a child, the clock, another run, another version."""

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import chaos_runs
from chaos_runs import artifacts, clock_jumps, contents, other_version, run, small_files, start
from retort.errors import ChildOutOfMemory, ChildTimedOut
from tasks.child_process import in_child

ROWS = 64


def told_in_a_sentence(ended: Any) -> bool:
    return ended.exit_code in (1, 2) and len(ended.told.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("only_whole")
def test_a_full_disk_of_the_store_is_told_and_the_run_goes_on_with_room(
    chaos: Any, figures: Counter[str], temporary: Path, tmp_path: Path
) -> None:
    check_full_disk(chaos, figures, tmp_path / "store", tmp_path / "store", "160k")


@pytest.mark.slow
def test_a_full_disk_of_temporary_files_is_told_and_the_run_goes_on_with_room(
    chaos: Any, figures: Counter[str], temporary: Path, tmp_path: Path
) -> None:
    check_full_disk(chaos, figures, tmp_path / "store", temporary, "40k")


def check_full_disk(chaos: Any, figures: Counter[str], root: Path, disk: Path, size: str) -> None:
    """A small disk where the system lets us have one, else a limit on the size of files."""
    disk.mkdir(exist_ok=True)
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    try:
        ended = run(chaos.config(root), spoil=None if mounted else small_files)
        assert told_in_a_sentence(ended), ended
        assert "disk is full" in ended.told or "cannot write" in ended.told or "too large" in ended.told, ended
        figures[f"full disk ({'a small one' if mounted else 'a limit on files'}) of {disk.name}: told"] += 1
        left = artifacts(root)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert run(chaos.config(root)).exit_code == 0
        assert left.items() <= artifacts(root).items()
        assert contents(root) == chaos.undisturbed
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["too_much_for_python", "too_much_for_torch", "too_much_for_arrow"])
async def test_a_child_without_memory_says_so(figures: Counter[str], name: str) -> None:
    with pytest.raises(ChildOutOfMemory, match="the machine's memory was too small"):
        await in_child(getattr(chaos_runs, name), timeout_seconds=60)
    figures["children without memory: told, and retried with smaller batches"] += 1


async def test_a_child_that_hangs_is_ended(figures: Counter[str]) -> None:
    with pytest.raises(ChildTimedOut):
        await in_child(chaos_runs.stop_itself, timeout_seconds=3)
    figures["children that hang: ended"] += 1


@pytest.mark.slow
@pytest.mark.usefixtures("only_whole")
def test_a_clock_that_jumps_changes_nothing(chaos: Any, figures: Counter[str], temporary: Path, tmp_path: Path) -> None:
    ended = run(chaos.config(tmp_path / "store"), spoil=clock_jumps)
    assert ended.exit_code == 0, ended
    assert contents(tmp_path / "store") == chaos.undisturbed
    figures["runs with a clock that jumps: right"] += 1


@pytest.mark.slow
@pytest.mark.usefixtures("only_whole")
def test_runs_side_by_side_in_one_store(chaos: Any, figures: Counter[str], temporary: Path, tmp_path: Path) -> None:
    before = chaos.server.answered.total()
    root = tmp_path / "store"
    runs = [start(chaos.config(root)), start(chaos.config(root)), start(chaos.config(root, seed=1))]
    for ended in [wait() for wait in runs]:
        assert ended.exit_code == 0, ended
    twice = chaos.server.answered.total() - before - ROWS
    made = artifacts(root)
    assert chaos.undisturbed.items() <= contents(root).items()
    assert run(chaos.config(root)).exit_code == run(chaos.config(root, seed=1)).exit_code == 0
    assert artifacts(root) == made, "everything is found"
    figures["runs at once in one store: right"] += 3
    figures["completions that runs at once asked for more than once"] += twice
    assert twice <= 2 * ROWS


@pytest.mark.slow
@pytest.mark.usefixtures("only_whole")
def test_a_run_of_another_version_leaves_the_artifacts_of_this_one(
    chaos: Any, figures: Counter[str], temporary: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    assert run(chaos.config(root)).exit_code == 0
    mine = artifacts(root)
    before = chaos.server.answered.total()
    assert run(chaos.config(root), spoil=other_version).exit_code == 0
    both = artifacts(root)
    assert mine.items() <= both.items()
    assert len([name for name in both if name.startswith("students/")]) > len(
        [name for name in mine if name.startswith("students/")]
    )
    assert chaos.server.answered.total() == before, "labels are those of both versions"
    assert run(chaos.config(root)).exit_code == 0
    assert artifacts(root) == both
    figures["runs of another version in the same store: right"] += 1
