"""Batches requests: those that arrive while the model is busy are labeled together, in the next batch."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from retort.errors import RetortError

T = TypeVar("T")

BATCH_TEXTS = 256
"""Most texts in one batch, unless a single request has more. Bounds how long a request waits for others."""
WAITING_TEXTS = 8192
"""Most texts that may wait; requests beyond that are refused."""


class Busy(RetortError):
    """More texts are waiting than can be labeled in a reasonable time."""


@dataclass(frozen=True, slots=True)
class _Request(Generic[T]):
    texts: Sequence[str]
    answers: "asyncio.Future[list[T]]"


class Batcher(Generic[T]):
    """Answers requests with `label`, which runs in a thread of its own so that it never blocks the event loop."""

    def __init__(self, label: Callable[[list[str]], list[T]]) -> None:
        self._label = label
        self._waiting: deque[_Request[T]] = deque()
        self._num_waiting = 0
        self._arrived, self._is_idle = asyncio.Event(), asyncio.Event()
        self._is_idle.set()
        self._batch_since: float | None = None

    @property
    def num_waiting(self) -> int:
        """Texts that wait for the next batch."""
        return self._num_waiting

    @property
    def batch_seconds(self) -> float:
        """How long the batch that is being labeled has taken so far; 0 if there is none."""
        return 0.0 if self._batch_since is None else time.monotonic() - self._batch_since

    async def drained(self) -> None:
        """Wait until everything that was asked is answered."""
        await self._is_idle.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests while the context is open; those left at the end are canceled."""
        with ThreadPoolExecutor(1, "model") as thread:
            worker = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                worker.cancel()
                with suppress(asyncio.CancelledError):
                    await worker
                while self._waiting:
                    self._waiting.popleft().answers.cancel()

    async def ask(self, texts: Sequence[str]) -> list[T]:
        """Return an answer for each text. Raises Busy, or whatever `label` raised."""
        if self._num_waiting + len(texts) > WAITING_TEXTS:
            raise Busy(f"{self._num_waiting:,} texts are waiting already; try again in a moment")
        request: _Request[T] = _Request(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._num_waiting += len(texts)
        self._is_idle.clear()
        self._arrived.set()
        return await request.answers

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                self._is_idle.set()
                continue
            texts = [text for request in batch for text in request.texts]
            self._batch_since = time.monotonic()
            try:
                answers = await loop.run_in_executor(thread, self._label, texts)
            except Exception as error:  # any failure goes to those who wait for this batch; the next may work
                _settle(batch, error)
            else:
                _settle(batch, answers)
            finally:
                self._batch_since = None

    def _next_batch(self) -> list[_Request[T]]:
        """The requests that have waited longest, never split. Canceled requests are dropped."""
        batch: list[_Request[T]] = []
        num_texts = 0
        while self._waiting and (not batch or num_texts + len(self._waiting[0].texts) <= BATCH_TEXTS):
            request = self._waiting.popleft()
            self._num_waiting -= len(request.texts)
            if not request.answers.cancelled():
                batch.append(request)
                num_texts += len(request.texts)
        return batch


def _settle(batch: Sequence[_Request[T]], outcome: list[T] | Exception) -> None:
    start = 0
    for request in batch:
        stop = start + len(request.texts)
        if not request.answers.done():  # otherwise it was canceled
            if isinstance(outcome, Exception):
                request.answers.set_exception(outcome)
            else:
                request.answers.set_result(outcome[start:stop])
        start = stop
