"""Runs expensive functions in a child process, which can be timed out and canceled, and whose death is explained.

Children are forked from a server process that has already imported torch and transformers (the standard library's
`forkserver`), so each starts in a moment and inherits no GPU state and no threads. A child exits when its parent dies.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

from retort.errors import ChildCrashed, ChildKilled, ChildOutOfMemory, ChildTimedOut, RetortError
from retort.records.base import Progress

T = TypeVar("T")

PROGRESS_EVERY_SECONDS = 0.25
_POLL_SECONDS = 0.5
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in a RuntimeError, where Python says MemoryError."""
_log = logging.getLogger(__name__)
_context = get_context("forkserver")
# Lets the children's threads sleep while they wait for each other. By default they spin, and then a single other busy
# process on the machine makes training ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_context.set_forkserver_preload(
    [
        *("retort.recipes", "retort.recipes.execute", "retort.students.loading", "retort.students.training"),
        # Imported late by pyarrow, transformers and bucket stores; without this, every child would import them again.
        *("pandas", "transformers.models.bert.modeling_bert", "retort.store.bucket"),
    ]
)


def warm_up() -> None:
    """Start the server process in the background; it takes some seconds to import torch."""
    with _blank_main():
        forkserver.ensure_running()


async def in_child(
    function: Callable[..., T],
    *args: object,
    timeout_seconds: float,
    on_progress: Progress = lambda *_: None,
    environment: Mapping[str, str] = types.MappingProxyType({}),
) -> T:
    """Call `function(*args, progress)` in a child process. Returns its result, or raises its RetortError here.

    `environment` adds to this process's variables or overrides them. Raises ChildTimedOut, ChildKilled,
    ChildOutOfMemory or ChildCrashed if there is no result. Canceling kills the child at once.
    """
    ours, theirs = _context.Pipe()
    surroundings = ({**os.environ, **environment}, os.getcwd())
    child = _context.Process(target=_child_main, args=(theirs, surroundings, function, args), daemon=True)
    starting = asyncio.create_task(asyncio.to_thread(_start, child))
    try:
        await asyncio.shield(starting)
        theirs.close()
        result: T = await _result(child, ours, time.monotonic() + timeout_seconds, timeout_seconds, on_progress)
        return result
    finally:
        await starting  # if canceled while the fork server still imports torch, wait until there is a child to kill
        child.kill()
        await asyncio.to_thread(child.join)
        ours.close()


async def _result(
    child: ForkServerProcess, pipe: Connection, deadline: float, timeout_seconds: float, on_progress: Progress
) -> Any:
    while True:
        if time.monotonic() > deadline:
            raise ChildTimedOut(f"ended after execution.stage_timeout_seconds = {timeout_seconds:g}")
        if not await asyncio.to_thread(pipe.poll, _POLL_SECONDS):
            continue
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):  # OSError if the child died in the middle of a message
            await asyncio.to_thread(child.join)
            raise _death(child.exitcode) from None
        match kind:
            case "progress":
                on_progress(*value)
            case "result":
                return value
            case "error":
                raise value
            case "crash":
                _log.error("%s", value[1])
                raise ChildCrashed(value[0])


def _death(exit_code: int | None) -> RetortError:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", most often because memory ran out" if name == "SIGKILL" else ""
        return ChildKilled(f"the child process was ended by {name}{hint}")
    return ChildKilled(f"the child process ended with exit code {exit_code} and no result")


def _start(child: ForkServerProcess) -> None:
    with _blank_main():
        child.start()


_main_lock = threading.Lock()


@contextlib.contextmanager
def _blank_main() -> Iterator[None]:
    """Keep multiprocessing from importing the parent's main module in every child: 3 s for a Prefect worker."""
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _child_main(
    pipe: Connection, surroundings: tuple[dict[str, str], str], function: Callable[..., Any], args: tuple[object, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    environment, folder = surroundings  # the fork server has those from when it was started
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    outcome = _outcome(pipe, function, args)
    try:
        pipe.send(outcome)
    except Exception as error:  # a result that cannot be pickled
        pipe.send(_crash(error))
    os._exit(0)


def _end_with_parent(pipe: Connection) -> None:
    """Exit when the parent dies. The parent never sends, so the pipe becomes readable only then."""
    pipe.poll(None)
    os._exit(1)


def _outcome(pipe: Connection, function: Callable[..., Any], args: tuple[object, ...]) -> tuple[str, Any]:
    try:
        return "result", function(*args, _throttled(pipe))
    except RetortError as error:
        return "error", error
    except MemoryError:
        return "error", ChildOutOfMemory("the machine's memory was too small")
    except (Exception, SystemExit) as error:  # sent to the parent, which logs it and raises ChildCrashed
        if type(error).__name__ == "OutOfMemoryError":
            return "error", ChildOutOfMemory("the GPU's memory was too small")
        if isinstance(error, RuntimeError) and _CPU_MEMORY in str(error):
            return "error", ChildOutOfMemory("the machine's memory was too small")
        return _crash(error)


def _crash(error: BaseException) -> tuple[str, Any]:
    """The error's first line, and the whole traceback for the log."""
    text = str(error).strip()
    first = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    return "crash", (first, traceback.format_exc())


def _throttled(pipe: Connection) -> Progress:
    last = 0.0

    def progress(done: int, total: int, note: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > PROGRESS_EVERY_SECONDS:
            last = time.monotonic()
            pipe.send(("progress", (done, total, note)))

    return progress
