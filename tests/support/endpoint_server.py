"""A real HTTP server on loopback that speaks the chat completions protocol, with injectable faults. It counts requests
and completions by item (the last user turn), so that a test can prove that nothing completed was requested twice.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from threading import Thread
from typing import Any

from aiohttp import web

from retort.config import EndpointConfig
from retort.teachers.endpoint.client import open_endpoint
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Rejection, Turn

Body = dict[str, Any]
Fault = Callable[["EndpointServer", web.Request, Body], Awaitable[web.StreamResponse]]


class EndpointServer:
    """A context manager. Its behavior may be changed at any time."""

    def __init__(self) -> None:
        self.reply: Callable[[Body], str | None] = lambda body: "food"
        """The text of a completion for a request's body."""
        self.alternatives: list[tuple[str, float]] = []
        """(token, log-probability) of the first token, returned on request; if empty, no log-probabilities at all."""
        self.usage: Body | None = {
            "prompt_tokens": 100,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 90},
        }
        self.finish_reason = "stop"
        self.thoughts: Body = {}
        """Fields of a message beside its content."""
        self.most_choices = 64
        """Maximum choices of one response, however large `n` is."""
        self.delay_seconds = 0.0
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        """Completions that were sent completely."""
        self.bodies: list[Body] = []
        self.raw_bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        """With their queries."""
        self.connections: set[tuple[str, int]] = set()
        self.under_way = self.most_under_way = 0
        self._faults: list[tuple[Fault, str | None, list[int | None]]] = []

    def fail(self, fault: Fault, times: int | None = None, item: str | None = None) -> None:
        """The next `times` requests (None: all) whose item contains `item` get this fault; faults apply in order."""
        self._faults.append((fault, item, [times]))

    def heal(self) -> None:
        self._faults.clear()

    def __enter__(self) -> "EndpointServer":
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="endpoint-server")
        self._thread.start()
        port = self._run(self._start())
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> int:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{prefix:.+}/chat/completions", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        item = body["messages"][-1]["content"]
        self.asked[item] += 1
        self.bodies.append(body)
        self.raw_bodies.append(raw)
        self.headers.append(request.headers)
        self.paths.append(request.path_qs)
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            fault = self._next_fault(item)
            if fault:
                return await fault(self, request, body)
            await asyncio.sleep(self.delay_seconds)
            return await self.answer(request, body, self.completion(body))
        finally:
            self.under_way -= 1

    def _next_fault(self, item: str) -> Fault | None:
        for fault, wanted, left in self._faults:
            if (wanted is None or wanted in item) and left[0] != 0:
                left[0] = None if left[0] is None else left[0] - 1
                return fault
        return None

    async def answer(self, request: web.Request, body: Body, completion: Body) -> web.StreamResponse:
        response = web.json_response(completion)
        await response.prepare(request)
        await response.write_eof()
        self.answered[body["messages"][-1]["content"]] += 1
        return response

    def completion(self, body: Body) -> Body:
        choices = []
        for index in range(min(body.get("n", 1), self.most_choices)):
            message = {"role": "assistant", "content": self.reply(body), **self.thoughts}
            choices.append({"index": index, "message": message, "finish_reason": self.finish_reason})
            if body.get("logprobs") and self.alternatives:
                listed = [{"token": token, "logprob": value} for token, value in self.alternatives]
                choices[-1]["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        return {"id": "always-the-same", "object": "chat.completion", "choices": choices, "usage": self.usage}

    @staticmethod
    def status(status: int, text: str = "", **headers: str) -> Fault:
        async def fault(server: EndpointServer, request: web.Request, body: Body) -> web.StreamResponse:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(status=status, text=text, headers=named)

        return fault

    @staticmethod
    def error(status: int, message: str, **headers: str) -> Fault:
        """An error in the format of OpenAI and vLLM."""
        return EndpointServer.status(status, json.dumps({"error": {"message": message, "code": status}}), **headers)

    @staticmethod
    async def hang(server: "EndpointServer", request: web.Request, body: Body) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    @staticmethod
    async def cut(server: "EndpointServer", request: web.Request, body: Body) -> web.StreamResponse:
        """The connection closes in the middle of the body."""
        text = json.dumps(server.completion(body)).encode()
        response = web.StreamResponse(headers={"Content-Length": str(len(text))})
        await response.prepare(request)
        await response.write(text[: len(text) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    @staticmethod
    async def truncated(server: "EndpointServer", request: web.Request, body: Body) -> web.StreamResponse:
        """Status and length are correct, but the JSON is incomplete."""
        return web.Response(text=json.dumps(server.completion(body))[:-20], content_type="application/json")

    @staticmethod
    async def doubled(server: "EndpointServer", request: web.Request, body: Body) -> web.StreamResponse:
        """Every choice comes twice."""
        completion = server.completion(body)
        return await server.answer(request, body, {**completion, "choices": completion["choices"] * 2})


SHARED = (Turn("system", "Say what it is."), Turn("user", "an äpple"), Turn("assistant", "food"))


def config(server: EndpointServer | str, **more: Any) -> EndpointConfig:
    url = server if isinstance(server, str) else server.url
    return EndpointConfig.model_validate({"kind": "endpoint", "url": url, "model": "dummy"} | more)


def requests(number: int, **more: Any) -> list[CompletionRequest]:
    return [CompletionRequest(n.to_bytes(16, "big"), Prompt(SHARED, f"row {n:05d}"), **more) for n in range(number)]


def ask(server: EndpointServer | str, asked: list[CompletionRequest], **more: Any) -> list[Completion | Rejection]:
    with open_endpoint(config(server, **more), backoff_seconds=0.001) as client:
        return list(client.ask(iter(asked)))


def texts(outcomes: list[Completion | Rejection]) -> list[str]:
    assert all(isinstance(outcome, Completion) for outcome in outcomes), outcomes
    return [outcome.text for outcome in outcomes if isinstance(outcome, Completion)]


def all_answered_once(server: EndpointServer, outcomes: list[Completion | Rejection], number: int) -> None:
    assert sorted(int.from_bytes(outcome.key, "big") for outcome in outcomes) == list(range(number))
    assert texts(outcomes) == ["food"] * number
    assert server.answered == {f"row {n:05d}": 1 for n in range(number)}
