"""One vLLM engine as a child process in a group of its own: what it is told, what it says, and how it ended."""

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

Message = dict[str, Any]

_KEPT_LINES, _SHOWN_LINES = 400, 3
_CLOSE_SECONDS = 5.0
"""For an idle engine to end by itself, and for the kernel to end a killed group."""
_log = logging.getLogger("retort.teachers.vllm")


class EngineChild:
    """`events` gets (this engine, message) for all that it says beside heartbeats, and (this engine, None) when it has
    ended; what it said before comes first."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        events: "queue.SimpleQueue[tuple[EngineChild, Message | None]]",
        title: str,
    ) -> None:
        self.title = title
        """Names it in messages: `the vLLM engine (GPU 0)`."""
        self.facts: Message = {}
        """What it said when it was ready."""
        self.num_under_way = 0
        """Questions that it has and has not answered, as its user counts them."""
        self.progress_at = time.monotonic()
        """When it last said something new."""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
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

    def tell(self, message: Message) -> None:
        """Never waits, so that an engine that hangs does not hang its user."""
        self._outbox.put(json.dumps(message).encode() + b"\n")

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
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
                except ValueError:  # cut off by its death
                    continue
                if alive := message.get("alive"):
                    if alive["tokens"] == tokens:
                        continue
                    tokens = alive["tokens"]
                else:
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
        """Its own processes hold its pipes open, so that without it they would keep us waiting for more."""
        self._process.wait()
        self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it and all that it started, and wait until it is gone."""
        self._outbox.put(None)
        if self._process.returncode is None:
            self._kill_group()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)

    def close(self) -> None:
        """Let it end by itself if nothing is under way, so that vLLM gives back what it shares; then end it anyhow."""
        self._outbox.put(None)
        if not self.num_under_way:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_SECONDS)
        self.kill()

    def death(self, config: VllmConfig, fatal: Message | None) -> RetortError:
        """Why it ended, after it has. `fatal` is what it said last, if it could."""
        detail = fatal["detail"] if fatal else ""
        reason, field = (fatal["reason"], fatal["field"]) if fatal else ("engine", "")
        if reason == "engine" and (heard := failures.raised(self._lines)):
            # Of the process of vLLM's that failed, whose user only learns that it did.
            told, told_field = failures.classify(heard)
            if told == "out-of-memory" or (told in ("model", "config") and not self.facts):
                reason, field, detail = told, told_field, heard
        match reason:
            case "out-of-memory":
                return ChildOutOfMemory(f"{self.title} ran out of memory: {detail}")
            case "model":
                allowed = "; allowed are decoder-only language models" if failures.is_other_kind(detail) else ""
                return ConfigError(f"teacher.model = '{config.model}': vLLM cannot use it: {detail}{allowed}")
            case "config":
                value = getattr(config, field) if field else None
                name = f"teacher{field and '.'}{field}" + (f" = {value}" if value is not None else "")
                return ConfigError(f"{name}: vLLM refuses it: {detail}")
        return TeacherUnavailable(f"{self.title} {self._ending()}{self._last_words(detail)}")

    def _ending(self) -> str:
        code = self._process.returncode
        if code is None:
            return "closed its pipe"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _last_words(self, detail: str) -> str:
        if detail:
            return f": {detail}"
        lines = [line[-300:] for line in list(self._lines)[-_SHOWN_LINES:]]
        return f"; its last words: {' | '.join(lines)}" if lines else ""
