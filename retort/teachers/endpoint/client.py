"""Any OpenAI-compatible server as a teacher: many requests at once in a thread of its own, an iterator outside."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from retort.config import EndpointConfig
from retort.teachers.endpoint.connection import Connection
from retort.teachers.endpoint.firsttoken import check_first_tokens
from retort.teachers.endpoint.tries import Outcome, Tries
from retort.teachers.requests import CompletionClient, CompletionRequest

MOST_AHEAD = 256
"""Questions taken beyond those under way."""

T = TypeVar("T")


@contextmanager
def open_endpoint(config: EndpointConfig, backoff_seconds: float = 1.0) -> Iterator[CompletionClient]:
    """Sends nothing before it is asked. `backoff_seconds`: the pause after a first failure, doubled with each further.

    Raises ConfigError for an address that is none, or a key that the environment does not hold.
    """
    connection = Connection(config)
    with _loop_thread() as loop:
        _run(loop, connection.open())
        try:
            yield Endpoint(loop, Tries(config, connection.post, backoff_seconds), config.concurrency)
        finally:
            _run(loop, _cancel_all())
            _run(loop, connection.close())


class Endpoint:
    """See `CompletionClient`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tries: Tries, concurrency: int) -> None:
        self._loop, self._tries, self._concurrency = loop, tries, concurrency

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def ask(self, questions: Iterator[CompletionRequest]) -> Iterator[Outcome]:
        """See `CompletionClient.ask`. Where a server gives fewer samples than it was asked for, the rest is asked for
        again; a Rejection may then follow some Completions.

        Raises ConfigError before anything is sent where two verbalizers begin alike.
        """
        asking = Asking(self._loop, self._tries, self._concurrency)
        try:
            yield from asking.outcomes(questions)
        finally:
            asking.close()


class Asking:
    """One call of `ask`: workers in the event loop, which share a queue; in the caller's thread, the iterator."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tries: Tries, concurrency: int) -> None:
        self._loop, self._tries, self._concurrency = loop, tries, concurrency
        self._ahead: deque[CompletionRequest] = deque()
        self._waking = False
        self._pending: asyncio.Queue[CompletionRequest] = asyncio.Queue()
        self._arrived: SimpleQueue[tuple[list[Outcome], bool] | BaseException] = SimpleQueue()
        tries.stopped = False
        self._task = _run(loop, self._start())

    def outcomes(self, questions: Iterator[CompletionRequest]) -> Iterator[Outcome]:
        most = self._concurrency + min(self._concurrency, MOST_AHEAD)
        in_hand, more = 0, True
        while True:
            while more and in_hand < most:
                question = next(questions, None)
                if question is None:
                    more = False
                    break
                self._put(question)
                in_hand += 1
                if not self._arrived.empty():
                    # What is there goes out first, however slowly questions come.
                    break
            if not in_hand:
                return
            arrived = self._arrived.get()
            if isinstance(arrived, BaseException):
                raise arrived
            outcomes, settled = arrived
            # One that met an error stays in hand until the error comes, so that the end is not taken for a good one.
            in_hand -= settled
            yield from outcomes

    def close(self) -> None:
        if not self._loop.is_closed():
            _run(self._loop, self._cancel())

    def _put(self, question: CompletionRequest) -> None:
        check_first_tokens(question.verbalizers)
        self._ahead.append(question)
        if not self._waking:
            # Waking the loop costs a system call: once for all that has been put since it last looked.
            self._waking = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._waking = False
        while self._ahead:
            self._pending.put_nowait(self._ahead.popleft())

    async def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Ends by an error, or by being cancelled."""
        workers = {asyncio.create_task(self._work()) for _ in range(self._concurrency)}
        error: BaseException | None = None
        try:
            ended, others = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            error = next(iter(ended)).exception()
            self._tries.stopped = True
            for worker in others - self._tries.sending:
                worker.cancel()
            if others:
                # What is under way may have been paid for.
                await asyncio.wait(others)
        finally:
            # A cancellation that meets a request's timeout is lost in it: then the worker sees that it is to stop.
            self._tries.stopped = True
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._arrived.put(error or RuntimeError("the endpoint was closed"))

    async def _work(self) -> None:
        while not self._tries.stopped:
            question, outcomes, settled = await self._pending.get(), list[Outcome](), False
            try:
                await self._tries.settle(question, outcomes)
                settled = True
            finally:
                self._arrived.put((outcomes, settled))

    async def _cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@contextmanager
def _loop_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="retort-endpoint", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        _run(loop, loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
