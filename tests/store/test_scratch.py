"""Temporary folders: deleted at the end, and those of killed processes at the next start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retort.io import scratch as module
from retort.io.scratch import scratch, sweep

HOLD = """
import time
from retort.io.scratch import scratch
with scratch("made") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this process and its children; nothing in it is too new to be swept."""
    monkeypatch.setattr(module, "_NEW_SECONDS", 0.0)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_folder_is_empty_and_goes(temporary: Path) -> None:
    with scratch("made") as folder:
        assert folder.parent == temporary
        assert os.listdir(folder) == []
        (folder / "file").touch()
    assert os.listdir(temporary) == []


def test_only_what_dead_processes_left_is_swept(temporary: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip())
    (folder / "model").mkdir()
    (folder / "model" / "weights").touch()
    stay = ["retort-notes", "retort-scratch-made-of-mine", "other"]
    for name in stay:
        (temporary / name).mkdir()
    (temporary / "retort-scratch-link-abcdefgh").symlink_to(temporary / "other")
    (temporary / "retort-scratch-file-abcdefgh").touch()
    with scratch("rows") as mine:
        assert sweep() == 0, "this process and the other live"
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        assert folder.is_dir()
        assert sweep() == 1
        assert mine.is_dir()
    assert not folder.exists()
    assert [name for name in stay if not (temporary / name).is_dir()] == []
    assert sweep(temporary / "none") == 0


def test_a_folder_that_is_not_locked_yet_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / "retort-scratch-made-abcdefgh").mkdir()
    monkeypatch.setattr(module, "_NEW_SECONDS", 60.0)
    assert sweep() == 0
    monkeypatch.setattr(module, "_NEW_SECONDS", 0.0)
    assert sweep() == 1


def test_a_folder_in_use_on_another_machine_is_left_alone_where_locks_do_not_reach(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.fcntl, "flock", lambda *_: None)
    with scratch("made") as folder:
        (folder / "large").touch()
        os.utime(folder, (1, 1))
        here = module._MACHINE
        monkeypatch.setattr(module, "_MACHINE", ("0" * 8, "1" * 8))
        assert sweep() == 0
        assert folder.is_dir()
        monkeypatch.setattr(module, "_MACHINE", here)
        assert sweep() == 1, "no lock tells that it is in use"


def test_what_a_machine_left_that_does_not_come_back_is_swept(temporary: Path) -> None:
    folder = temporary / f"retort-scratch-made-{'0' * 8}-{'1' * 8}-abcdefgh"
    folder.mkdir()
    (folder / "large").touch()
    for path in (folder, folder / "large"):
        assert sweep() == 0
        os.utime(path, (1, 1))
    assert sweep() == 1


@pytest.mark.parametrize("other", [0, 1], ids=["another container", "an earlier boot"])
def test_what_another_container_or_an_earlier_boot_left_is_swept(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    machine = list(module._MACHINE)
    machine[other] = "0" * 8
    (temporary / f"retort-scratch-made-{'-'.join(machine)}-abcdefgh").mkdir()
    assert sweep() == 1
