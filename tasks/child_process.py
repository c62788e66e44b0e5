"""Runs expensive functions in a child process, which can be timed out and canceled, and whose death is explained.

Children are forked from a server process that has already imported torch and transformers (the standard library's
`forkserver`), so each starts in a moment and inherits no GPU state and no threads. A child exits when its parent dies.

A child stays for the next call at the same place (the CPU, or a GPU), which then finds CUDA started and every library
loaded. It does so only after a success that left no memory behind; after anything else the next call gets a new child.
A child that waits ends as soon as another process holds its GPU.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import psutil

from retort.errors import ChildCrashed, ChildKilled, ChildTimedOut, RetortError
from retort.records.base import Progress
from tasks.child_main import Call, Surroundings, child_main
from tasks.gpu_locks import Place

T = TypeVar("T")

_POLL_SECONDS = 0.5
_GONE_SECONDS = 10.0
"""How long to wait for killed processes, which a driver may hold for a moment."""
_FALLOUT_SECONDS = 1.0
"""How long after a failure the failures that it causes, or that caused it, are waited for."""
_log = logging.getLogger(__name__)
_context, _alone = get_context("forkserver"), get_context("spawn")
# Lets the children's threads sleep while they wait for each other. By default they spin, and then a single other busy
# process on the machine makes training ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_context.set_forkserver_preload(
    [
        *("tasks.child_main", "retort.recipes", "retort.recipes.execute"),
        *("retort.students.loading", "retort.students.training"),
        # Imported late, by pyarrow, hygiene, transformers and bucket stores; every child would import them again.
        *("pandas", "datasketch", "transformers.models.bert.modeling_bert", "retort.store.bucket"),
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
    place: Place | None = None,
) -> T:
    """Call `function(*args, progress)` in a child process. Returns its result, or raises its RetortError here.

    The variables of `place` are added to this process's own or override them. The child may have made earlier calls at
    the same place, and may stay for later ones; with no place it ends with this call. Raises ChildTimedOut,
    ChildKilled, ChildOutOfMemory or ChildCrashed if there is no result. Canceling kills the child at once.
    """
    call = Call(function, args, stay="clean" if place is not None and not place.kept_for else "no")
    while (child := await _waiting_child(place)) is not None:
        with contextlib.suppress(_DiedWaiting):
            return cast(T, await _done_by(child, call, timeout_seconds, on_progress))
    return cast(T, await _done_by(_Child(place or Place()), call, timeout_seconds, on_progress))


async def begin_in_child(function: Callable[..., T], *args: object, timeout_seconds: float, place: Place) -> T:
    """Like `in_child`, in a new child that stays with what it started, for one more call at the same place. It imports
    only what it needs, so that it need not wait for the fork server's torch."""
    call = Call(function, args, stay="always")
    return cast(T, await _done_by(_Child(place, _alone), call, timeout_seconds, lambda *_: None))


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of calls whose processes wait for each other. If one fails all are ended, and its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if others:  # one failed; the others may crash of that, and be seen first
            done, _ = await asyncio.wait(tasks, timeout=_FALLOUT_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [error for task in tasks if task in done and (error := task.exception())]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, ChildCrashed))
    return [task.result() for task in tasks]


async def end_waiting(place: Place | None = None) -> None:
    """End the children that wait for another call, all of them or those on the GPUs of a place; those that a place is
    kept for stay."""
    for at in list(_waiting):
        if place is None or (set(at.locks) & set(place.locks) and not (at.kept_for and at == _at(place))):
            for child in _waiting.pop(at, []):
                await asyncio.to_thread(child.end)


async def end_kept(place: Place) -> None:
    """End the child that waits at a place that is kept for a step."""
    for child in _waiting.pop(_at(place), []):
        await asyncio.to_thread(child.end)


class _DiedWaiting(Exception):
    """The child ended before it took the call, so that another child can."""


class _Child:
    """A child process. It is made in no time, started by `start`, and gone after `end`."""

    def __init__(self, place: Place, context: ForkServerContext | SpawnContext = _context) -> None:
        self.place, self.surroundings = place, _surroundings(place)
        self.has_stayed = False
        self.pipe, self._theirs = context.Pipe()
        self._process = context.Process(
            target=child_main, args=(self._theirs, self.surroundings, place.locks, os.getpid()), daemon=True
        )

    def start(self) -> None:
        with _blank_main():
            self._process.start()
        self._theirs.close()

    def send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died, which `recv` tells
            self.pipe.send_bytes(message)

    def end(self) -> None:
        """With all that it has started: an engine's memory is free when this returns."""
        own = self._started()
        self._process.kill()
        self._process.join()
        for process in own:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(own, timeout=_GONE_SECONDS)
        self.pipe.close()

    def _started(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True) if self._process.pid else []
        return []

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def death(self) -> RetortError:
        """Why it ended by itself."""
        self._process.join()
        exit_code = self._process.exitcode
        if exit_code is not None and exit_code < 0:
            name = signal.Signals(-exit_code).name
            hint = ", most often because memory ran out" if name == "SIGKILL" else ""
            return ChildKilled(f"the child process was ended by {name}{hint}")
        return ChildKilled(f"the child process ended with exit code {exit_code} and no result")


class _At(NamedTuple):
    """Where a child waits: on these GPUs, for any step or for one."""

    locks: tuple[Path, ...]
    kept_for: str


def _at(place: Place) -> _At:
    return _At(place.locks, place.kept_for)


_waiting: defaultdict[_At, list[_Child]] = defaultdict(list)
"""Children that wait for another call."""


def _surroundings(place: Place) -> Surroundings:
    return Surroundings({**os.environ, **place.environment}, os.getcwd(), list(sys.path))


async def _waiting_child(place: Place | None) -> _Child | None:
    """A child that waits at the place, in the surroundings of now; all others there are ended. One that was begun for a
    single step has the surroundings of then."""
    while place is not None and (children := _waiting[_at(place)]):
        child = children.pop()
        if (place.kept_for or child.surroundings == _surroundings(place)) and child.is_alive():
            return child
        await asyncio.to_thread(child.end)
    return None


async def _done_by(child: _Child, call: Call, timeout_seconds: float, on_progress: Progress) -> Any:
    """Have a child make the call. The child is ended, or waits for another one if it can."""
    starting = None if child.has_stayed else asyncio.create_task(asyncio.to_thread(child.start))
    stays = False
    try:
        if starting:
            await asyncio.shield(starting)
        value, stays = await _outcome(child, call, time.monotonic() + timeout_seconds, timeout_seconds, on_progress)
        return value
    finally:
        if starting:
            await starting  # if canceled while the fork server still imports torch, wait until there is a child to kill
        if stays:
            child.has_stayed = True
            _waiting[_at(child.place)].append(child)
        else:
            await asyncio.to_thread(child.end)


async def _outcome(
    child: _Child, call: Call, deadline: float, timeout_seconds: float, on_progress: Progress
) -> tuple[Any, bool]:
    """(the result, whether the child stays)"""
    message, is_taken = bytes(ForkingPickler.dumps(call)), False
    sending = asyncio.create_task(asyncio.to_thread(child.send, message))  # one that hangs must not hang its parent
    while True:
        if time.monotonic() > deadline:
            raise ChildTimedOut(f"ended after execution.stage_timeout_seconds = {timeout_seconds:g}")
        if not await asyncio.to_thread(child.pipe.poll, _POLL_SECONDS):
            continue
        try:
            kind, value = child.pipe.recv()
        except (EOFError, OSError):  # OSError if the child died in the middle of a message
            if child.has_stayed and not is_taken:
                raise _DiedWaiting from None
            raise (await asyncio.to_thread(child.death)) from None
        match kind:
            case "taken":
                await sending
                is_taken = True
            case "progress":
                on_progress(*value)
            case "result":
                result, stays = value
                return result, stays
            case "error":
                raise value
            case "crash":
                _log.error("%s", value[1])
                raise ChildCrashed(value[0])


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
