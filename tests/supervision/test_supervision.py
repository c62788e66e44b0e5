"""A child's result, its errors, its death: each is told to the parent as what it is."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from retort.errors import ChildCrashed, ChildKilled, ChildOutOfMemory, ChildTimedOut, DataError
from tasks.child_process import PROGRESS_EVERY_SECONDS, in_child, warm_up

# Children import this file's functions by the name that pytest gave it, so they live in a module of their own.
CHILDREN = '''
import os, signal, time
from retort.errors import DataError

def add(a, b, progress):
    return a + b

def bad_data(progress):
    raise DataError("data.labeled = 'x', line 3: no text")

def crash(progress):
    raise KeyError("first line\\nsecond line")

def unpicklable(progress):
    return lambda: None

def out_of_memory(progress):
    raise MemoryError

class OutOfMemoryError(RuntimeError):
    """Named as torch's."""

def out_of_gpu_memory(progress):
    raise OutOfMemoryError("CUDA out of memory")

def leave(progress):
    os._exit(3)

def leave_politely(progress):
    raise SystemExit(4)

def kill_itself(progress):
    os.kill(os.getpid(), signal.SIGKILL)

def segfault(progress):
    os.kill(os.getpid(), signal.SIGSEGV)

def sleep(pid_file, progress):
    with open(pid_file + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(pid_file + ".new", pid_file)
    time.sleep(60)

def spin(pid_file, progress):
    with open(pid_file + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(pid_file + ".new", pid_file)
    while True:
        pass

def report(times, progress):
    for number in range(times):
        progress(number, times, "rows")
        time.sleep(0.001)
    progress(times, times, "rows")
    return times

def surroundings(progress):
    return os.environ.get("RETORT_TEST"), os.getcwd()
'''

PARENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from children_of_tests import sleep
from tasks.child_process import in_child
if __name__ == "__main__":
    asyncio.run(in_child(sleep, sys.argv[2], timeout_seconds=60))
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module of functions that run in children."""
    folder = tmp_path_factory.mktemp("children")
    (folder / "children_of_tests.py").write_text(CHILDREN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import children_of_tests  # type: ignore[import-not-found]

        warm_up()
        yield children_of_tests


async def ended(function: Callable[..., Any], *args: object, timeout_seconds: float = 60) -> Any:
    return await in_child(function, *args, timeout_seconds=timeout_seconds)


async def test_a_result_comes_back(child: Any) -> None:
    assert await ended(child.add, 1, 2) == 3


async def test_several_run_side_by_side(child: Any) -> None:
    assert await asyncio.gather(*(ended(child.add, n, n) for n in range(8))) == [2 * n for n in range(8)]


async def test_an_error_of_ours_is_raised_with_its_type_and_sentence(child: Any) -> None:
    with pytest.raises(DataError) as caught:
        await ended(child.bad_data)
    assert type(caught.value) is DataError
    assert str(caught.value) == "data.labeled = 'x', line 3: no text"


async def test_a_crash_is_one_line_here_and_a_traceback_in_the_log(
    child: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ChildCrashed) as caught:
        await ended(child.crash)
    assert "first line" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" in caplog.text


async def test_a_result_that_cannot_travel_is_a_crash(child: Any) -> None:
    with pytest.raises(ChildCrashed, match="pickle"):
        await ended(child.unpicklable)


async def test_memory_that_ran_out_is_told_apart(child: Any) -> None:
    for function in (child.out_of_memory, child.out_of_gpu_memory):
        with pytest.raises(ChildOutOfMemory):
            await ended(function)


@pytest.mark.parametrize(
    ("name", "words"),
    [("kill_itself", "SIGKILL, most often because memory"), ("segfault", "SIGSEGV"), ("leave", "exit code 3")],
)
async def test_a_death_without_a_word_is_seen(child: Any, name: str, words: str) -> None:
    with pytest.raises(ChildKilled, match=words):
        await ended(getattr(child, name))


async def test_an_exit_from_within_is_a_crash(child: Any) -> None:
    with pytest.raises(ChildCrashed, match="SystemExit"):
        await ended(child.leave_politely)


@pytest.mark.parametrize("name", ["sleep", "spin"])
async def test_a_timeout_ends_the_process(child: Any, name: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(ChildTimedOut, match="stage_timeout_seconds = 2"):
        await ended(getattr(child, name), str(pid_file), timeout_seconds=2)
    assert time.monotonic() - started < 4
    assert not psutil.pid_exists(int(pid_file.read_text()))


async def test_cancelling_ends_the_process(child: Any, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    work = asyncio.create_task(ended(child.sleep, str(pid_file)))
    pid = int(await written(pid_file))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not psutil.pid_exists(pid)


async def test_cancelling_while_it_starts_leaves_no_child(child: Any, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    work = asyncio.create_task(ended(child.sleep, str(pid_file)))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await asyncio.sleep(0.5)
    assert not pid_file.exists() or not psutil.pid_exists(int(pid_file.read_text()))


async def written(file: Path, seconds: float = 30) -> str:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not appear"
        await asyncio.sleep(0.02)
    return file.read_text()


@pytest.mark.parametrize("name", ["sleep"])
async def test_a_child_ends_with_a_parent_that_was_killed(child: Any, name: str, tmp_path: Path) -> None:
    script, pid_file = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    folder = str(Path(child.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": folder}
    parent = subprocess.Popen([sys.executable, str(script), folder, str(pid_file)], env=environment)
    pid = int(await written(pid_file, seconds=60))
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child outlived its parent"
        await asyncio.sleep(0.05)


async def test_progress_arrives_in_order_and_not_too_often(child: Any) -> None:
    seen: list[tuple[int, int, str]] = []
    started = time.monotonic()
    await in_child(child.report, 1000, timeout_seconds=60, on_progress=lambda *args: seen.append(args))
    assert seen[0] == (0, 1000, "rows")
    assert seen[-1] == (1000, 1000, "rows")
    assert seen == sorted(seen)
    assert 3 <= len(seen) <= 3 + (time.monotonic() - started) / PROGRESS_EVERY_SECONDS


async def test_a_child_lives_where_its_caller_does_now(
    child: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, folder in (("one", tmp_path / "one"), ("two", tmp_path / "two")):
        folder.mkdir()
        monkeypatch.setenv("RETORT_TEST", value)
        monkeypatch.chdir(folder)
        assert await ended(child.surroundings) == (value, str(folder))
    monkeypatch.delenv("RETORT_TEST")
    assert (await ended(child.surroundings))[0] is None


async def test_a_caller_whose_handler_raises_still_ends_the_child(child: Any) -> None:
    def refuse(*_: object) -> NoReturn:
        raise RuntimeError("no bars here")

    with pytest.raises(RuntimeError, match="no bars"):
        await in_child(child.report, 100_000, timeout_seconds=60, on_progress=refuse)
