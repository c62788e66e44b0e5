"""A child's result, its errors, its death: each is told to the parent as what it is."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest

from retort.errors import ChildCrashed, ChildKilled, ChildOutOfMemory, ChildTimedOut, DataError, RetortError
from tasks import child_process, gpu_locks
from tasks.child_main import LOOK_SECONDS, PROGRESS_EVERY_SECONDS
from tasks.child_process import end_waiting, in_child, together, warm_up
from tasks.gpu_locks import Place, give_back, lock_of, take
from vllm_teacher import gone

# Children import this file's functions by the name that pytest gave it, so they live in a module of their own.
CHILDREN = '''
import os, signal, subprocess, threading, time
from retort.errors import DataError
from tasks import child_main

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
    time.sleep(600)

def start_and_fail(pid_file, progress):
    while not os.path.exists(pid_file):
        time.sleep(0.05)
    raise DataError("line 3: no text")

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

def pid(progress):
    return os.getpid()

def change_everything(progress):
    import torch
    before = settings(None)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    os.environ["RETORT_TEST"] = "changed"
    os.chdir("/")
    return before

def settings(progress):
    import torch
    modes = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    return torch.get_num_threads(), *modes, os.environ.get("RETORT_TEST"), os.getcwd()

def keep_too_much(progress):
    child_main.MOST_KEPT_BYTES = 1
    return os.getpid()

def leave_a_process(progress):
    subprocess.Popen(["sleep", "600"])
    return os.getpid()

def leave_a_thread(progress):
    def late():
        for number in range(1000):
            time.sleep(0.01)
            progress(1, 1, "late")
    threading.Thread(target=late, daemon=True).start()
    return os.getpid()

def doze(seconds, progress):
    time.sleep(seconds)
    return os.getpid()
'''

PARENT = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from children_of_tests import pid, sleep
from tasks.child_process import in_child
from tasks.gpu_locks import Place

async def main():
    if sys.argv[3] == "sleep":
        await in_child(sleep, sys.argv[2], timeout_seconds=600)
    with open(sys.argv[2] + ".new", "w") as file:
        file.write(str(await in_child(pid, timeout_seconds=60, place=Place())))
    os.replace(sys.argv[2] + ".new", sys.argv[2])
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
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


async def test_those_that_work_together_end_together(child: Any, tmp_path: Path) -> None:
    assert await together([ended(child.add, 1, 2), ended(child.report, 3)]) == [3, 3]
    pid_file = tmp_path / "pid"
    with pytest.raises(DataError, match="line 3: no text"):
        await together([ended(child.sleep, str(pid_file)), ended(child.start_and_fail, str(pid_file))])
    assert not psutil.pid_exists(int(pid_file.read_text()))


@pytest.mark.parametrize("name", ["out_of_memory", "kill_itself", "bad_data"])
async def test_what_one_failed_of_is_told_and_not_how_the_others_lost_it(child: Any, name: str) -> None:
    with pytest.raises((ChildOutOfMemory, ChildKilled, DataError)):
        await together([ended(child.crash), ended(getattr(child, name)), ended(child.crash)])


async def test_canceled_together_none_is_left(child: Any, tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    running = asyncio.ensure_future(together([ended(child.sleep, str(file)) for file in files]))
    while not all(file.exists() for file in files):
        await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(psutil.pid_exists(int(file.read_text())) for file in files)


@pytest.mark.parametrize("name", ["sleep", "spin"])
async def test_a_timeout_ends_the_process(
    child: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    late_once_there(pid_file, monkeypatch)
    started = time.monotonic()
    with pytest.raises(ChildTimedOut, match="stage_timeout_seconds = 1000"):
        await ended(getattr(child, name), str(pid_file), timeout_seconds=1000)
    assert time.monotonic() - started < 300, "it did not end by itself"
    assert not psutil.pid_exists(int(pid_file.read_text()))


def late_once_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour passes as soon as the file exists."""
    now = time.monotonic
    late = SimpleNamespace(monotonic=lambda: now() + 3600 * file.exists())
    monkeypatch.setattr(child_process, "time", late)


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


async def written(file: Path, seconds: float = 300) -> str:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not appear"
        await asyncio.sleep(0.02)
    return file.read_text()


@pytest.mark.parametrize("name", ["sleep", "wait"])
async def test_a_child_ends_with_a_parent_that_was_killed(child: Any, name: str, tmp_path: Path) -> None:
    script, pid_file = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    folder = str(Path(child.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
    parent = subprocess.Popen([sys.executable, str(script), folder, str(pid_file), name], env=environment)
    pid = int(await written(pid_file))
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(60)
    end = time.monotonic() + 120
    while not gone(pid):
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


CPU = Place()


@pytest.fixture
async def none_waits() -> AsyncIterator[None]:
    """Before the test and after it."""
    await end_waiting()
    yield
    await end_waiting()


async def stays(function: Callable[..., Any], *args: object, timeout_seconds: float = 60, place: Place = CPU) -> Any:
    return await in_child(function, *args, timeout_seconds=timeout_seconds, place=place)


@pytest.mark.usefixtures("none_waits")
async def test_a_child_stays_for_the_next_call_at_its_place(child: Any) -> None:
    first = await stays(child.pid)
    assert await stays(child.pid) == first
    assert await ended(child.pid) != first, "this one asked for a new child"
    assert await stays(child.pid, place=Place(environment={"CUDA_VISIBLE_DEVICES": "1"})) != first
    assert not psutil.pid_exists(first), "two of one place see the same"


@pytest.mark.usefixtures("none_waits")
async def test_as_many_children_stay_as_were_needed_at_once(child: Any) -> None:
    both = set(await asyncio.gather(stays(child.doze, 0.5), stays(child.doze, 0.5)))
    assert len(both) == 2
    assert set(await asyncio.gather(stays(child.doze, 0.5), stays(child.doze, 0.5))) == both
    await end_waiting()
    assert not any(map(psutil.pid_exists, both))


@pytest.mark.usefixtures("none_waits")
@pytest.mark.parametrize(
    "name", ["bad_data", "crash", "unpicklable", "out_of_memory", "out_of_gpu_memory", "kill_itself", "leave"]
)
async def test_a_child_that_failed_does_not_stay(child: Any, name: str) -> None:
    first = await stays(child.pid)
    with pytest.raises(RetortError):
        await stays(getattr(child, name))
    assert not psutil.pid_exists(first)
    assert await stays(child.pid) != first


@pytest.mark.usefixtures("none_waits")
@pytest.mark.parametrize("name", ["keep_too_much", "leave_a_process"])
async def test_a_child_that_keeps_something_does_not_stay(child: Any, name: str) -> None:
    first = await stays(child.pid)
    assert await stays(getattr(child, name)) == first, "what it made counts"
    assert not psutil.pid_exists(first)
    assert await stays(child.pid) != first


@pytest.mark.usefixtures("none_waits")
async def test_a_child_that_stayed_is_ended_by_a_timeout_and_by_cancelling(
    child: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await stays(child.pid)
    late_once_there(tmp_path / "first", monkeypatch)
    with pytest.raises(ChildTimedOut):
        await stays(child.spin, str(tmp_path / "first"), timeout_seconds=1000)
    monkeypatch.undo()
    assert int((tmp_path / "first").read_text()) == first
    assert not psutil.pid_exists(first)

    second = await stays(child.pid)
    work = asyncio.create_task(stays(child.sleep, str(tmp_path / "second")))
    assert int(await written(tmp_path / "second")) == second
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not psutil.pid_exists(second)


@pytest.mark.usefixtures("none_waits")
async def test_a_child_that_died_while_it_waited_costs_nothing(child: Any) -> None:
    first = await stays(child.pid)
    os.kill(first, signal.SIGKILL)
    assert await stays(child.pid) != first

    second = await stays(child.pid)
    os.kill(second, signal.SIGSTOP)  # so that it is alive when it is given the call, and dies before it takes it
    work = asyncio.create_task(stays(child.pid))
    await asyncio.sleep(0.3)
    os.kill(second, signal.SIGKILL)
    assert await work not in (first, second)


@pytest.mark.usefixtures("none_waits")
async def test_a_call_finds_what_it_finds_in_a_new_child(
    child: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await stays(child.pid)
    new = await stays(child.change_everything)
    assert await stays(child.settings) == new
    assert await stays(child.pid) == first
    monkeypatch.setenv("RETORT_TEST", "other")
    monkeypatch.chdir(tmp_path)
    assert await stays(child.surroundings) == ("other", str(tmp_path))


@pytest.mark.usefixtures("none_waits")
async def test_a_forgotten_thread_does_not_report_for_the_next_call(child: Any) -> None:
    seen: list[str] = []
    first = await stays(child.leave_a_thread)
    note = lambda done, total, text: seen.append(text)  # noqa: E731
    assert await in_child(child.doze, 0.5, timeout_seconds=60, place=CPU, on_progress=note) == first
    assert seen == []


@pytest.mark.usefixtures("none_waits")
async def test_a_waiting_child_leaves_its_gpu_to_another_process(
    child: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_locks, "FOLDER", tmp_path / "locks")
    lock = lock_of("GPU-a")
    place = Place((lock,), {"CUDA_VISIBLE_DEVICES": "GPU-a"})
    assert take(lock, 1)
    first = await stays(child.pid, place=place)
    await asyncio.sleep(3 * LOOK_SECONDS)
    assert await stays(child.pid, place=place) == first, "its own run holds the GPU"
    give_back(lock)
    await asyncio.sleep(3 * LOOK_SECONDS)
    assert psutil.Process(first).status() != psutil.STATUS_ZOMBIE, "nobody wants the GPU"

    lock.write_text("1")  # as if process 1 had taken it
    with lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        end = time.monotonic() + 60
        while not gone(first):
            assert time.monotonic() < end, "it keeps the GPU's memory"
            await asyncio.sleep(0.05)
    assert await stays(child.pid, place=place) != first


@pytest.mark.usefixtures("none_waits")
async def test_an_engine_gets_its_gpus_without_waiting_children(child: Any, tmp_path: Path) -> None:
    one, two = (Place((tmp_path / name,), {"CUDA_VISIBLE_DEVICES": name}) for name in ("0", "1"))
    first, second, other = await stays(child.pid, place=one), await stays(child.pid, place=two), await stays(child.pid)
    await end_waiting(Place((*one.locks, tmp_path / "9")))
    assert [psutil.pid_exists(pid) for pid in (first, second, other)] == [False, True, True]
