"""Client for any OpenAI-compatible server: concurrent requests in a background thread behind a plain iterator."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from retort.config import EndpointConfig
from retort.store import Store
from retort.teachers.endpoint.connection import Connection
from retort.teachers.endpoint.firsttoken import check_first_tokens
from retort.teachers.endpoint.sender import Answer, RequestSender
from retort.teachers.endpoint.sharing import SharedLimit
from retort.teachers.requests import CompletionClient, CompletionRequest

MAX_QUEUED = 256
"""Most requests taken from the caller beyond those in flight."""

T = TypeVar("T")


@contextmanager
def open_endpoint(
    config: EndpointConfig, store: Store | None = None, backoff_seconds: float = 1.0
) -> Iterator[CompletionClient]:
    """A client for the endpoint. Sends nothing until `ask` is called. Limits per minute are shared with the others that
    have the `store`. `backoff_seconds` is the pause after a first failure; it doubles with each further one.

    Raises ConfigError for an invalid address, or a key that is not in the environment, and StoreUnavailable.
    """
    connection = Connection(config)
    sender = RequestSender(config, connection.post, backoff_seconds)
    is_limited = config.requests_per_minute is not None or config.tokens_per_minute is not None
    shared = SharedLimit(config, store, sender.limiter.share) if store is not None and is_limited else nullcontext()
    with _loop_thread() as loop, shared:
        _run(loop, connection.open())
        try:
            yield EndpointClient(loop, sender, config.concurrency)
        finally:
            _run(loop, _cancel_all())
            _run(loop, connection.close())


class EndpointClient:
    """See `CompletionClient`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sender: RequestSender, concurrency: int) -> None:
        self._loop, self._sender, self._concurrency = loop, sender, concurrency

    @property
    def facts(self) -> dict[str, Any]:
        waits = self._sender.waits
        return {"retries": waits.retries, "waited_seconds": round(waits.seconds, 3)}

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Answer]:
        """See `CompletionClient.ask`. If a server returns fewer samples than requested, the rest is requested again; a
        Rejection may then follow some Completions.

        Raises ConfigError before anything is sent if two verbalizers begin alike.
        """
        pool = WorkerPool(self._loop, self._sender, self._concurrency)
        try:
            yield from pool.outcomes(requests)
        finally:
            pool.close()


class WorkerPool:
    """Serves one call of `ask`: workers in the event loop share a queue; the iterator runs in the caller's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sender: RequestSender, concurrency: int) -> None:
        self._loop, self._sender, self._concurrency = loop, sender, concurrency
        self._queued: deque[CompletionRequest] = deque()
        self._wake_scheduled = False
        self._pending: asyncio.Queue[CompletionRequest] = asyncio.Queue()
        self._results: SimpleQueue[tuple[list[Answer], bool] | BaseException] = SimpleQueue()
        sender.stopped = False
        self._task = _run(loop, self._start())

    def outcomes(self, requests: Iterator[CompletionRequest]) -> Iterator[Answer]:
        limit = self._concurrency + min(self._concurrency, MAX_QUEUED)
        in_flight, more = 0, True
        while True:
            while more and in_flight < limit:
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                self._enqueue(request)
                in_flight += 1
                if not self._results.empty():
                    # Results that are ready go out first, however slowly requests come.
                    break
            if not in_flight:
                return
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            outcomes, done = result
            # A request that raised stays in flight until its error arrives, so that the loop cannot end without it.
            in_flight -= done
            yield from outcomes

    def close(self) -> None:
        if not self._loop.is_closed():
            _run(self._loop, self._cancel())

    def _enqueue(self, request: CompletionRequest) -> None:
        check_first_tokens(request.verbalizers)
        self._queued.append(request)
        if not self._wake_scheduled:
            # Waking the loop costs a system call, so it is done once for all requests queued since the last wake-up.
            self._wake_scheduled = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._wake_scheduled = False
        while self._queued:
            self._pending.put_nowait(self._queued.popleft())

    async def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Run the workers; ends with an error or by being canceled."""
        workers = {asyncio.create_task(self._work()) for _ in range(self._concurrency)}
        error: BaseException | None = None
        try:
            ended, others = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            error = next(iter(ended)).exception()
            self._sender.stopped = True
            for worker in others - self._sender.in_flight:
                worker.cancel()
            if others:
                # Requests in flight may have been paid for.
                await asyncio.wait(others)
        finally:
            # A cancellation that coincides with a request's timeout is swallowed; then this flag stops the worker.
            self._sender.stopped = True
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._results.put(error or RuntimeError("the endpoint was closed"))

    async def _work(self) -> None:
        while not self._sender.stopped:
            request, outcomes, done = await self._pending.get(), list[Answer](), False
            try:
                await self._sender.send(request, outcomes)
                done = True
            finally:
                self._results.put((outcomes, done))

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
