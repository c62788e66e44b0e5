"""What protects the scorer from its clients: a token, and limits of size, time and number."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from retort.serving.metrics import PROBES

MOST_BYTES = 8 * 2**20
"""Largest request body."""
MOST_BYTES_HELD = 64 * 2**20
"""Most bytes of all the bodies that have come and are not yet answered."""
READ_SECONDS = 10.0
"""How long a client may take to send a request's headers, then its body, and to take what it is sent."""
OPEN_PATHS = ("/health", "/healthz", "/livez", "/readyz")
"""What is answered without the token: whether the scorer lives, and which model it has."""
WATCHERS = 16
"""Most connections at once to the port that is for watching."""


class Guard:
    """Middleware that checks the token, a body's size while it is still arriving, and the time that an answer takes."""

    def __init__(self, app: ASGIApp, *, token: str | None, seconds: float, metrics_port: int | None = None) -> None:
        """`seconds` is how long an answer may take from the request's headers on. On `metrics_port` the scorer is
        watched without the token, and asked for nothing else."""
        self._app, self._token, self._seconds, self._metrics_port = app, token, seconds, metrics_port
        self._bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._is_watched(scope) and scope["path"] not in PROBES:
            await _refusal(404, f"this port answers {', '.join(PROBES)}")(scope, receive, send)
        elif not self._is_allowed(scope):
            sentence = "this needs the header Authorization: Bearer TOKEN, with the scorer's token"
            await _refusal(401, sentence, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in OPEN_PATHS or self._is_watched(scope):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], f"Bearer {self._token}".encode())

    def _is_watched(self, scope: Scope) -> bool:
        return self._metrics_port is not None and scope["server"][1] == self._metrics_port

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, has_begun = _Body(receive, self._hold), False

        async def told(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, body.receive, told)
        except TimeoutError:
            if not limit.expired() or has_begun:
                raise
            sentence = f"this took more than {self._seconds:g} s; send fewer or shorter texts at once"
            await _refusal(504, sentence)(scope, receive, send)
        finally:
            self._bytes_held -= body.num_bytes

    def _hold(self, num_bytes: int) -> None:
        self._bytes_held += num_bytes
        if self._bytes_held > MOST_BYTES_HELD:
            raise HTTPException(503, "too many bytes are waiting already; try again in a moment", {"Retry-After": "1"})


class _Body:
    """The body of one request as it arrives. Raises HTTPException once it is too large, or takes too long."""

    def __init__(self, receive: Receive, hold: Callable[[int], None]) -> None:
        self._receive, self._hold = receive, hold
        self._deadline = asyncio.get_running_loop().time() + READ_SECONDS
        self._is_complete = False
        self.num_bytes = 0

    async def receive(self) -> Message:
        if self._is_complete:  # what follows is the client's leaving, which may take as long as it likes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {READ_SECONDS:g} s") from None
        size = len(message.get("body", b""))
        self.num_bytes += size
        self._hold(size)
        if self.num_bytes > MOST_BYTES:
            raise HTTPException(413, f"the body has more than {MOST_BYTES:,} bytes; send fewer texts at once")
        self._is_complete = not message.get("more_body", False)
        return message


def _refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> Callable[..., Awaitable[None]]:
    return JSONResponse({"detail": sentence}, status, headers)


def limited_protocol(clients: int, metrics_port: int | None, refused: Callable[[], None]) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, for at most so many connections at once, beside those to `metrics_port`. Ends those on
    which no request comes, or whose client does not take its answer. Calls `refused` for each one too many."""
    sentence = json.dumps({"detail": f"{clients} clients are connected already; try again in a moment"})
    refusal = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
        f"Content-Length: {len(sentence)}\r\n\r\n{sentence}"
    ).encode()

    class LimitedProtocol(H11Protocol):
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            port = _port(self)
            if sum(_port(one) == port for one in self.connections) > (WATCHERS if port == metrics_port else clients):
                refused()
                self.connections.discard(self)
                transport.pause_reading()
                transport.write(refusal)
                transport.write_eof()
                self.loop.call_later(1, transport.abort)  # closing now, with its request unread, would lose the answer
            else:
                self.loop.call_later(READ_SECONDS, self._end_if_idle, None)

        def on_response_complete(self) -> None:
            answered = self.cycle
            super().on_response_complete()
            self.loop.call_later(READ_SECONDS, self._end_if_idle, answered)

        def _end_if_idle(self, last: RequestResponseCycle | None) -> None:
            """End the connection unless the headers of a request have come since the last one."""
            if self.cycle is last:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(READ_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck:
                self._stuck.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._stuck:
                self._stuck.cancel()

    return LimitedProtocol


def _port(connection: Any) -> int:
    """The port of this machine that the connection came to."""
    assert connection.server is not None  # a TCP socket has an address
    return int(connection.server[1])


def usable_token(token: str) -> bool:
    """Whether it is long enough not to be guessed, and can be sent in a header."""
    return len(token) >= 16 and token.isascii() and token.isprintable() and " " not in token
