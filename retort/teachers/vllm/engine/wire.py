"""The engine's end of the pipe to Retort: JSON lines in and out, a heartbeat, and a shutdown when Retort dies.

Imports only the standard library, since it must be set up before vLLM is imported, which prints to standard output.
"""

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

HEARTBEAT_SECONDS = 0.5
_PARENT_EVERY_SECONDS = 0.5


class Wire:
    """Takes over standard input and output: from here on, other code's prints go to standard error, and processes that
    vLLM forks inherit neither the input pipe nor a lock on it held by a thread."""

    def __init__(self, parent: int) -> None:
        """`parent` is Retort's process id."""
        self._in, self._out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        """Messages from Retort; None at the end of standard input."""
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, *messages: Message) -> None:
        lines = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        try:
            with self._lock:
                self._out.write(lines)
                self._out.flush()
        except BrokenPipeError:
            end_all()

    def beat(self, state: Callable[[], Message | None]) -> None:
        """Send `{"alive": state()}` periodically from a background thread, except while the state is None."""

        def beating() -> None:
            while True:
                time.sleep(HEARTBEAT_SECONDS)
                if alive := state():
                    self.send({"alive": alive})

        threading.Thread(target=beating, daemon=True).start()

    def _read(self) -> None:
        for line in self._in:
            self.inbox.put(json.loads(line))
        self.inbox.put(None)


def _end_with(parent: int) -> None:
    """Exit once the parent is gone. The end of standard input does not tell, since it also means that no more requests
    will come."""
    while os.getppid() == parent:
        time.sleep(_PARENT_EVERY_SECONDS)
    end_all()


def end_all() -> None:
    """Kill this process and those that vLLM started, however busy they are."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
