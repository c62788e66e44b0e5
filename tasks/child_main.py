"""The child's side of `child_process`: what a child process does with the calls that its parent sends it."""

import contextlib
import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal, NamedTuple

from retort.errors import ChildOutOfMemory, RetortError
from tasks.gpu_locks import holder

PROGRESS_EVERY_SECONDS = 0.25
LOOK_SECONDS = 0.5
"""How often a child that waits looks whether another process holds its GPU."""
MOST_KEPT_BYTES = min(2**32, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
"""A child that keeps more memory than that after a call does not stay for the next one ..."""
MOST_KEPT_GPU_BYTES = 2**28
"""... nor one that keeps more than that of a GPU's, beside CUDA itself."""
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in a RuntimeError, where Python says MemoryError."""


class Surroundings(NamedTuple):
    """What a function finds around it."""

    environment: dict[str, str]
    folder: str
    """The working directory."""
    path: list[str]
    """Where modules are imported from."""


class Call(NamedTuple):
    function: Callable[..., Any]
    """Called with `args` and a callback for progress."""
    args: tuple[object, ...]
    stay: Literal["no", "clean", "always"]
    """Whether the child is to stay for another call; clean: if this one leaves no memory and no processes behind."""


def child_main(pipe: Connection, surroundings: Surroundings, locks: Sequence[Path], parent: int) -> None:
    """Do the calls that come, until one fails or leaves something behind.

    For each, sends `taken`, any number of `progress`, and `result`, `error` or `crash`. `locks` are those of the GPUs
    that are visible here, and `parent` is the process that sends the calls.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    gc.freeze()  # what was imported lives on and need not be scanned after each call
    settings = _Settings() if "torch" in sys.modules else None  # without it, none of them was changed
    stays = True
    while stays and (message := _next_message(inbox, locks, parent)):
        _enter(surroundings)  # the call before may have changed them
        if settings:
            settings.restore()
        stays = _do(_Line(pipe), message)
    os._exit(0)


def _enter(surroundings: Surroundings) -> None:
    if dict(os.environ) != surroundings.environment:
        os.environ.clear()
        os.environ.update(surroundings.environment)
    os.chdir(surroundings.folder)


def _receive(pipe: Connection, inbox: "queue.SimpleQueue[bytes]") -> None:
    """Pass messages on, and exit when the parent dies, whatever the main thread does."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            inbox.put(pipe.recv_bytes())
    os._exit(1)


def _next_message(inbox: "queue.SimpleQueue[bytes]", locks: Sequence[Path], parent: int) -> bytes | None:
    """Wait for a call. None if another process holds the GPU meanwhile, which is to have its memory."""
    while True:
        try:
            return inbox.get(timeout=LOOK_SECONDS if locks else None)
        except queue.Empty:
            if any(holder(lock) not in (None, 0, parent) for lock in locks):
                return None


def _do(line: "_Line", message: bytes) -> bool:
    """Do one call; returns whether the child can do another."""
    line.send("taken", None)
    kind, value, stay = _outcome(line, message)
    stays = kind == "result" and (stay == "always" or (stay == "clean" and _is_clean()))
    try:
        line.send(kind, (value, stays) if kind == "result" else value, last=True)
    except Exception as error:  # a result that cannot be pickled
        line.send(*_crash(error), last=True)
        return False
    return stays


class _Line:
    """Messages of one call to the parent. What a forgotten thread reports after its end is dropped."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._has_ended, self._last = False, 0.0

    def send(self, kind: str, value: Any, *, last: bool = False) -> None:
        with self._lock:
            if not self._has_ended:
                self._pipe.send((kind, value))
                self._has_ended = last

    def progress(self, done: int, total: int, note: str) -> None:
        if done == total or time.monotonic() - self._last > PROGRESS_EVERY_SECONDS:
            self._last = time.monotonic()
            self.send("progress", (done, total, note))


def _outcome(line: _Line, message: bytes) -> tuple[str, Any, str]:
    """(kind, value, whether the child is to stay)"""
    try:
        call: Call = ForkingPickler.loads(message)
        return "result", call.function(*call.args, line.progress), call.stay
    except RetortError as error:
        return "error", error, "no"
    except MemoryError:
        return "error", ChildOutOfMemory("the machine's memory was too small"), "no"
    except (Exception, SystemExit) as error:  # sent to the parent, which logs it and raises ChildCrashed
        if type(error).__name__ == "OutOfMemoryError":
            return "error", ChildOutOfMemory("the GPU's memory was too small"), "no"
        if isinstance(error, RuntimeError) and _CPU_MEMORY in str(error):
            return "error", ChildOutOfMemory("the machine's memory was too small"), "no"
        return *_crash(error), "no"


def _crash(error: BaseException) -> tuple[str, Any]:
    """The error's first line, and the whole traceback for the log."""
    text = str(error).strip()
    first = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    return "crash", (first, traceback.format_exc())


def _is_clean() -> bool:
    """Give memory back, and see whether that was all."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        if torch.cuda.memory_reserved() > MOST_KEPT_GPU_BYTES:
            return False
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return not _has_children() and (resident - shared) * os.sysconf("SC_PAGE_SIZE") < MOST_KEPT_BYTES


def _has_children() -> bool:
    """Whether processes of ours are left; those that have ended are waited for."""
    with contextlib.suppress(ChildProcessError):  # there are none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


class _Settings:
    """The process-wide settings of a new child, which a call may change and the next one must find. Random generators
    are not among them, because whoever needs one seeds it."""

    def __init__(self) -> None:
        import torch

        self._threads = torch.get_num_threads()
        self._cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
        self._fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]

    def restore(self) -> None:
        import torch

        torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_cudnn_sdp(self._cudnn_attention)
        torch.utils.deterministic.fill_uninitialized_memory = self._fills  # type: ignore[attr-defined]
