"""Requests per second of the endpoint teacher compared with bare clients, and what limits it.

    .venv/bin/python benchmarks/endpoint.py [--requests 20000] [--concurrency 64] [--repeats 3]

All clients are measured in one run. Requests have a shared prefix of 8 KB; a server in a separate process on loopback
reads each request and immediately returns a fixed chat completion. The baselines send the same bodies and read the
completion's text, without retries, rate limits or bookkeeping: httpx.AsyncClient with a semaphore, and aiohttp with as
many workers. Prints medians of the repeats, and the CPU time of client and server (a client that is busy all the time
is limited by its single core).
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import aiohttp
import httpx

from retort.config import EndpointConfig
from retort.teachers.endpoint.chat import BodyWriter
from retort.teachers.endpoint.client import open_endpoint
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Turn

arguments = argparse.ArgumentParser()
arguments.add_argument("--requests", type=int, default=20_000)
arguments.add_argument("--concurrency", type=int, default=64)
arguments.add_argument("--repeats", type=int, default=3)
arguments.add_argument("--httpx-requests", type=int, default=4_000, help="fewer, since it is slow")

SHARED = tuple(
    turn for n in range(50) for turn in (Turn("user", f"Input: {n} {'request ' * 15}"), Turn("assistant", "label"))
)
MESSAGE = {"role": "assistant", "content": "food", "refusal": None, "tool_calls": [], "reasoning": None}
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-5f1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "dummy",
        "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop", "stop_reason": None}],
        "usage": {
            "prompt_tokens": 2043,
            "total_tokens": 2047,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2000},
        },
    }
).encode()
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._read, self._wanted = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        self._read = self._read + data if self._read else data
        if not self._wanted:
            end = self._read.find(b"\r\n\r\n")
            match = LENGTH.search(self._read, 0, end) if end >= 0 else None
            if match is None:
                return
            self._wanted = end + 4 + int(match[1])
        if len(self._read) >= self._wanted:
            self._read, self._wanted = b"", 0
            self._transport.write(RESPONSE)


def serve(connection: Connection) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(connection.recv)

    asyncio.run(forever())


def requests(number: int) -> Iterator[CompletionRequest]:
    for n in range(number):
        prompt = Prompt(SHARED, f"Input: {n} wake me at seven tomorrow and play something quiet\nOutput:")
        yield CompletionRequest(n.to_bytes(16, "big"), prompt)


def ours(url: str, number: int, concurrency: int) -> int:
    config = EndpointConfig(kind="endpoint", url=url, model="dummy", concurrency=concurrency)
    with open_endpoint(config) as client:
        return sum(
            isinstance(completion, Completion) and completion.text == "food"
            for completion in client.ask(requests(number))
        )


def bare_aiohttp(url: str, number: int, concurrency: int) -> int:
    async def work(session: aiohttp.ClientSession, waiting: Iterator[CompletionRequest], bodies: BodyWriter) -> int:
        right = 0
        for request in waiting:
            async with session.post(f"{url}/chat/completions", data=bodies.body(request, (0,))) as response:
                right += (await response.json())["choices"][0]["message"]["content"] == "food"
        return right

    async def run() -> int:
        waiting, bodies = requests(number), BodyWriter("dummy", "none")
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            return sum(await asyncio.gather(*(work(session, waiting, bodies) for _ in range(concurrency))))

    return asyncio.run(run())


def bare_httpx(url: str, number: int, concurrency: int) -> int:
    async def run() -> int:
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        semaphore, bodies = asyncio.Semaphore(concurrency), BodyWriter("dummy", "none")
        async with httpx.AsyncClient(
            limits=limits, timeout=120, headers={"Content-Type": "application/json"}
        ) as client:

            async def one(request: CompletionRequest) -> bool:
                async with semaphore:
                    response = await client.post(f"{url}/chat/completions", content=bodies.body(request, (0,)))
                    return response.json()["choices"][0]["message"]["content"] == "food"

            return sum(await asyncio.gather(*(one(request) for request in requests(number))))

    return asyncio.run(run())


def measure(client: Callable[[str, int, int], int], number: int, concurrency: int) -> tuple[float, float, float]:
    """(requests/s, CPU seconds of the client, CPU seconds of the server)"""
    ours_end, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    server.start()
    url = f"http://127.0.0.1:{ours_end.recv()}/v1"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, cpu = time.perf_counter(), time.process_time()
    right = client(url, number, concurrency)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert right == number, f"{number - right} of {number} answers are missing or wrong"
    ours_end.send("end")
    server.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return number / seconds, cpu, sum(after[:2]) - sum(before[:2])


def main() -> None:
    given = arguments.parse_args()
    few = min(given.requests, given.httpx_requests)
    clients = {
        "retort": (ours, given.requests),
        "aiohttp, bare": (bare_aiohttp, given.requests),
        "httpx, bare": (bare_httpx, few),
    }
    size = len(BodyWriter("dummy", "none").body(next(requests(1)), (0,)))
    print(f"{given.requests} requests ({few} for httpx) of {size} bytes, {given.concurrency} under way")
    # Interleaved, so that other load on the machine affects all clients alike.
    rounds = [
        [measure(client, number, given.concurrency) for client, number in clients.values()]
        for _ in range(given.repeats)
    ]
    for place, (name, (_, number)) in enumerate(clients.items()):
        speeds, cpu, server_cpu = zip(*(one_round[place] for one_round in rounds), strict=True)
        ratios = [one_round[0][0] / one_round[place][0] for one_round in rounds]
        busy, server = (
            statistics.median(seconds / number * speed for seconds, speed in zip(spent, speeds, strict=True))
            for spent in (cpu, server_cpu)
        )
        print(
            f"{name:14}{statistics.median(speeds):6.0f} requests/s; retort's are {statistics.median(ratios):.2f} times "
            f"that; client {statistics.median(cpu) / number * 1e6:.0f} us CPU a request, {busy:.0%} of a core; server "
            f"{server:.0%}"
        )


if __name__ == "__main__":
    main()
