"""A proxy on loopback before a real S3 server, which can be told to spoil some of the answers.

A fault gets the request and what the server answered (it has already acted), and answers in its place.
"""

import asyncio
import io
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from threading import Thread
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from multidict import CIMultiDict


class Answer(NamedTuple):
    """What the server answered."""

    status: int
    headers: "CIMultiDict[str]"
    body: bytes


Fault = Callable[["FaultProxy", web.Request, Answer], Awaitable[web.StreamResponse]]
_NOT_PASSED_ON = {"transfer-encoding", "content-length", "content-encoding", "connection", "keep-alive"}
HANG_SECONDS = 60.0


class FaultProxy:
    """A context manager; `url` is its address. `faults` counts the answers spoiled, by the fault's name."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._planned: list[tuple[Fault, Callable[[web.Request], bool], list[int]]] = []
        self._share, self._kinds, self._random = 0.0, list[Fault](), random.Random(0)
        self._listings: dict[str, Answer] = {}
        self.faults: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        """Requests by method."""

    def fail(self, fault: Fault, times: int = 1, where: Callable[[web.Request], bool] = lambda request: True) -> None:
        """The next `times` requests that `where` chooses get this fault."""
        self._planned.append((fault, where, [times]))

    def fail_often(self, share: float, faults: list[Fault], seed: int = 0) -> None:
        """From now on this share of all requests gets one of these faults, but never two requests in a row for the same
        address, since a fault that does not heal is told, not healed."""
        self._share, self._kinds, self._random = share, faults, random.Random(seed)
        self._last: dict[str, bool] = {}

    def heal(self) -> None:
        self._planned.clear()
        self._share = 0.0

    def __enter__(self) -> "FaultProxy":
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._run(self._start())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> int:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._client = aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["User-Agent", "Content-Type"])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.method] += 1
        answer = await self._passed_on(request)
        if is_listing(request):
            self._listings.setdefault(request.path_qs, answer)
        fault = self._next_fault(request)
        if fault is None:
            return whole(request, answer, answer.body)
        self.faults[getattr(fault, "__name__", str(fault))] += 1
        return await fault(self, request, answer)

    async def _passed_on(self, request: web.Request) -> Answer:
        headers = CIMultiDict(request.headers)  # with the Host that was signed
        if request.headers.get("Expect"):
            headers.pop("Expect")
        body = await request.read()
        url = aiohttp.client.URL(self._server + request.raw_path, encoded=True)
        async with self._client.request(
            request.method, url, headers=headers, data=io.BytesIO(body) if body else None
        ) as answer:
            kept = CIMultiDict((n, v) for n, v in answer.headers.items() if n.lower() not in _NOT_PASSED_ON)
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                kept["Content-Length"] = answer.headers["Content-Length"]
            return Answer(answer.status, kept, await answer.read())

    def _next_fault(self, request: web.Request) -> Fault | None:
        for fault, where, left in self._planned:
            if left[0] > 0 and where(request):
                left[0] -= 1
                return fault
        if not self._share:
            return None
        place = f"{request.method} {request.path}"
        spoil = not self._last.get(place) and self._random.random() < self._share
        self._last[place] = spoil
        return self._random.choice(self._kinds) if spoil else None

    @staticmethod
    async def internal_error(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        return refused(500, "InternalError")

    @staticmethod
    async def unavailable(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        return refused(503, "ServiceUnavailable")

    @staticmethod
    async def slow_down(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        return refused(503, "SlowDown")

    @staticmethod
    async def reset(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        """The connection is reset in the middle of the body, or before any answer to a request that gets none."""
        assert request.transport is not None
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if answer.body:
            response.headers["Content-Length"] = str(len(answer.body))
            await response.prepare(request)
            await response.write(answer.body[: len(answer.body) // 2])
        request.transport.abort()
        return response

    @staticmethod
    async def short(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        """A body that is too short, with a Content-Length that says the same."""
        return whole(request, answer, answer.body[: len(answer.body) // 2])

    @staticmethod
    async def empty(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        return whole(request, answer, b"")

    @staticmethod
    async def flipped(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        """One byte in the middle is another."""
        body = bytearray(answer.body)
        if body:
            body[len(body) // 2] ^= 0x20
        return whole(request, answer, bytes(body))

    @staticmethod
    async def hang(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        await asyncio.sleep(HANG_SECONDS)
        raise AssertionError("the client waits too long")

    @staticmethod
    async def absent(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        """A listing that lacks everything; any other answer is as it was."""
        if not is_listing(request) or answer.status != 200:
            return whole(request, answer, answer.body)
        listing = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>'
        return whole(request, answer, f"{listing}<KeyCount>0</KeyCount></ListBucketResult>".encode())

    @staticmethod
    async def stale(proxy: "FaultProxy", request: web.Request, answer: Answer) -> web.StreamResponse:
        """A listing as it was when it was asked for first; any other answer is as it was."""
        then = proxy._listings.get(request.path_qs, answer)
        return whole(request, then, then.body)


def is_listing(request: web.Request) -> bool:
    return request.method == "GET" and "list-type" in request.query


def refused(status: int, code: str) -> web.Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


def whole(request: web.Request, answer: Answer, body: bytes) -> web.Response:
    if request.method == "HEAD":
        return web.Response(status=answer.status, headers=answer.headers)
    return web.Response(status=answer.status, headers=answer.headers, body=body)
