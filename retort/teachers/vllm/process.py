"""One vLLM engine as a child process in its own process group: messages to it, messages from it, and how it ended."""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any

from retort.config import VllmConfig
from retort.errors import ChildOutOfMemory, ConfigError, RetortError, TeacherUnavailable
from retort.teachers.vllm.engine import failures
from retort.teachers.vllm.machine import Place

Message = dict[str, Any]

_MAX_LINES, _SHOWN_LINES = 400, 3
_CLOSE_SECONDS = 5.0
"""How long to wait for an idle engine to exit by itself, and for a killed process group to be gone."""
_log = logging.getLogger("retort.teachers.vllm")


class EngineProcess:
    """A running engine. `events` receives (this engine, message) for every message except heartbeats, and finally
    (this engine, None) once the engine has ended."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        events: "queue.SimpleQueue[tuple[EngineProcess, Message | None]]",
        place: Place,
        following: "EngineProcess | None" = None,
    ) -> None:
        """`following` waits until this engine is ready: vLLM measures what is free of a GPU's memory, and takes what
        another engine takes meanwhile for its own."""
        self.place, self.title = place, place.title
        self._following = following
        self.facts: Message = {}
        """What the engine reported when it was ready."""
        self.num_in_flight = 0
        """Requests that the engine has not completed, as counted by the client."""
        self.progress_at = time.monotonic()
        """time.monotonic() of the last sign of progress."""
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._events = events
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        self._log_thread = self._thread(self._log_lines, stderr)
        self._threads = [
            self._log_thread,
            self._thread(self._write, stdin),
            self._thread(self._read, stdout),
            self._thread(self._wait),
        ]

    def _thread(self, target: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True, name=f"{target.__name__} of {self.title}")
        thread.start()
        return thread

    def send(self, message: Message) -> None:
        """Send a message without blocking, so that an engine that hangs does not hang the client."""
        self._outbox.put(json.dumps(message).encode() + b"\n")

    @property
    def pid(self) -> int:
        """Id of the process and of its process group."""
        return self._process.pid

    def stalled_seconds(self) -> float:
        return time.monotonic() - self.progress_at

    def _write(self, stdin: IO[bytes]) -> None:
        with contextlib.suppress(BrokenPipeError), stdin:
            while (line := self._outbox.get()) is not None:
                stdin.write(line)
                if self._outbox.empty():
                    stdin.flush()

    def _read(self, stdout: IO[bytes]) -> None:
        tokens = -1
        with stdout:
            for line in stdout:
                try:
                    message = json.loads(line)
                except ValueError:  # truncated because the engine died
                    continue
                if alive := message.get("alive"):
                    if alive["tokens"] == tokens:
                        continue
                    tokens = alive["tokens"]
                else:
                    if "ready" in message and self._following:
                        self._following.send({"go": True})
                    self._events.put((self, message))
                self.progress_at = time.monotonic()
        self._log_thread.join(_CLOSE_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self._events.put((self, None))

    def _log_lines(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                    _log.info("%s", text)

    def _wait(self) -> None:
        """Kill the process group once the engine has ended: its child processes would keep the pipes open forever."""
        self._process.wait()
        self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the engine and everything it started, and wait until they are gone."""
        self._outbox.put(None)
        if self._process.returncode is None:
            self._kill_group()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)

    def close(self) -> None:
        """Let the engine exit by itself if nothing is in flight, so that vLLM frees shared resources; then kill it."""
        self._outbox.put(None)
        if not self.num_in_flight:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_SECONDS)
        self.kill()

    def exit_error(self, config: VllmConfig, fatal: Message | None) -> RetortError:
        """The reason why the engine has ended. `fatal` is its last message, if it could send one."""
        detail = fatal["detail"] if fatal else ""
        reason, field = (fatal["reason"], fatal["field"]) if fatal else ("engine", "")
        if reason == "engine" and (exception := failures.last_exception(self._lines)):
            # The log has the exception of the vLLM process that failed; its parent only reports that it failed.
            log_reason, log_field = failures.classify(exception)
            if log_reason == "out-of-memory" or (log_reason in ("model", "config") and not self.facts):
                reason, field, detail = log_reason, log_field, exception
        match reason:
            case "out-of-memory":
                return ChildOutOfMemory(f"{self.title} ran out of memory: {detail}")
            case "model":
                allowed = "; allowed are decoder-only language models" if failures.is_other_kind(detail) else ""
                return ConfigError(f"teacher.model = '{config.model}': vLLM cannot use it: {detail}{allowed}")
            case "config":
                value = getattr(config, field) if field else None
                name = f"teacher{field and '.'}{field}" + (f" = {value}" if value is not None else "")
                copies = config.copies_per_gpu
                parts = f" (each of teacher.copies_per_gpu = {copies} engines has a part of the memory)"
                return ConfigError(f"{name}: vLLM refuses it: {detail}{parts if copies > 1 else ''}")
        return TeacherUnavailable(f"{self.title} {self._exit_description()}{self._log_tail(detail)}")

    def _exit_description(self) -> str:
        code = self._process.returncode
        if code is None:
            return "closed its pipe"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _log_tail(self, detail: str) -> str:
        if detail:
            return f": {detail}"
        lines = [line[-300:] for line in list(self._lines)[-_SHOWN_LINES:]]
        return f"; its last words: {' | '.join(lines)}" if lines else ""
