"""What `retort serve` allows its clients: real servers, with clients that are slow, many, large, or not let in."""

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest

from retort.serving import limits
from retort.serving.limits import MOST_BYTES, READ_SECONDS, Guard
from serve_process import Server, is_healthy, serving

TOKEN = "a-token-that-nobody-guesses"
Trained = Any
get, post = partial(httpx.get, timeout=60), partial(httpx.post, timeout=60)
Command = Callable[..., tuple[int, str, str]]


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=READ_SECONDS + 10)


HEADERS = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"


def ended_after(url: str, sent: bytes, drip: bytes) -> tuple[float, bytes]:
    """(seconds until the server ended the connection, what it said) for a client that sends, then drips each 0.5 s."""
    with connected(url) as client:
        started = time.monotonic()
        client.sendall(sent)
        client.settimeout(0.5)
        said = b""
        while time.monotonic() - started < 12 * READ_SECONDS:
            try:
                got = client.recv(4096)
                said += got
                if not got:
                    break
            except TimeoutError:
                pass
            except ConnectionError:
                break
            try:
                client.sendall(drip)
            except ConnectionError:
                break
        return time.monotonic() - started, said


@pytest.fixture(scope="module")
def running(classes_student: Trained) -> Iterator[Server]:
    options = ("--host", "0.0.0.0", "--clients", "8", "--metrics-port", "0")
    with serving(classes_student.student.uri, *options, token=TOKEN) as started:
        yield started


@pytest.fixture(scope="module")
def server(running: Server) -> str:
    return running.url


def test_it_answers_those_who_know_the_token(server: str) -> None:
    body = {"texts": ["the film was great"]}
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = post(f"{server}/predict", json=body, headers=header)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert TOKEN not in answer.text
    twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    assert post(f"{server}/predict", json=body, headers=twice).status_code == 401
    assert get(f"{server}/openapi.json").status_code == 401
    assert get(f"{server}/healthz").json() == get(f"{server}/health").json()
    answer = post(f"{server}/predict", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert "server" not in answer.headers


def test_a_refused_body_is_not_read(server: str) -> None:
    assert post(f"{server}/predict", content=b"x" * 2 * MOST_BYTES).status_code == 401


@pytest.mark.slow
def test_slow_clients_are_ended(server: str) -> None:
    allowed = HEADERS + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
    clients = {
        "says nothing": (b"", b""),
        "drips headers": (b"POST /predict HTTP/1.1\r\n", b"X: y\r\n"),
        "drips a body": (allowed, b" "),
        "drips a body that is refused": (HEADERS + b"\r\n", b" "),
        "drips its second request": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"X"),
    }
    with ThreadPoolExecutor(len(clients)) as pool:
        ended = dict(zip(clients, pool.map(lambda client: ended_after(server, *client), clients.values()), strict=True))
        assert get(f"{server}/healthz").status_code == 200
    assert {name: seconds for name, (seconds, _) in ended.items() if seconds >= 12 * READ_SECONDS} == {}
    assert b"408" in ended["drips a body"][1]
    assert b"the body did not arrive within 10 s" in ended["drips a body"][1]
    assert b"401" in ended["drips a body that is refused"][1]


@pytest.mark.slow
def test_a_client_that_does_not_take_its_answers_is_ended(server: str) -> None:
    """It asks for far more than the sockets between them hold, and reads nothing."""
    asked = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode() * 5000
    with connected(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(2)
        with suppress(TimeoutError):
            client.sendall(asked)
        watched = select.poll()
        watched.register(client, 0)
        assert watched.poll(120_000), "the connection is not ended"
        with pytest.raises(ConnectionError):  # what had been sent may still be read, then comes the end
            read_all(client)


def read_all(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def test_more_clients_than_it_takes_are_told_so(running: Server, server: str) -> None:
    idle = [connected(server) for _ in range(8)]
    try:
        time.sleep(0.2)
        watched = get(running.metrics_url)
        assert watched.status_code == 200, "who watches it is not kept out by its clients"
        with connected(server) as late:
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            said = b"".join(iter(lambda: late.recv(4096), b""))
    except ConnectionResetError:
        pytest.fail("the answer was lost")
    finally:
        for client in idle:
            client.close()
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body) == {"detail": "8 clients are connected already; try again in a moment"}
    end = time.monotonic() + 60
    while not is_healthy(server):
        assert time.monotonic() < end
    assert 'retort_serve_errors_total{kind="too_many_clients"} ' in get(running.metrics_url).text
    assert 'retort_serve_errors_total{kind="too_many_clients"} 0.0' not in get(running.metrics_url).text


def test_the_port_for_watching_needs_no_token_and_answers_nothing_else(running: Server, server: str) -> None:
    port = running.metrics_url.removesuffix("/metrics")
    for path in ("/metrics", "/livez", "/readyz", "/health", "/healthz"):
        assert get(f"{port}{path}").status_code == 200
    for path in ("/predict", "/openapi.json", "/docs"):
        answer = post(f"{port}{path}", json={"texts": ["a"]}, headers={"Authorization": f"Bearer {TOKEN}"})
        assert (answer.status_code, "this port answers /health" in answer.json()["detail"]) == (404, True)
    assert get(f"{server}/metrics").status_code == 401
    allowed = get(f"{server}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert "retort_serve_rows_total" in allowed.text


def test_addresses_of_ipv6_are_served_and_watched_as_well(classes_student: Trained) -> None:
    with serving(classes_student.student.uri, "--host", "::1", "--metrics-port", "0") as started:
        assert started.url.startswith("http://[::1]:")
        assert started.ask("the film was great").status_code == 200
        assert "retort_serve_rows_total 1.0" in get(started.metrics_url).text
        assert post(started.metrics_url.replace("/metrics", "/predict"), json={}).status_code == 404


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"texts":' * 50_000, b'{"texts": [' + b"1" * 10_000 + b"]}"])
def test_hostile_json_is_refused_and_harms_nothing(server: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    answer = post(f"{server}/predict", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert len(answer.json()["detail"]) < 200
    assert get(f"{server}/healthz").status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(classes_student: Trained) -> None:
    with serving(classes_student.student.uri, "--timeout", "0.001") as started:
        url = started.url
        answer = post(f"{url}/predict", json={"texts": ["the film was great " * 50] * 100})
        assert answer.status_code == 504
        assert answer.json() == {"detail": "this took more than 0.001 s; send fewer or shorter texts at once"}
        assert get(f"{url}/healthz").status_code in (200, 504)


async def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small enough by itself; what was answered no longer counts."""
    monkeypatch.setattr(limits, "MOST_BYTES_HELD", 10)
    held = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held.append((await receive())["body"])
        if len(held) == 1:
            with pytest.raises(Exception, match="too many bytes are waiting") as caught:
                await guard(scope, body(b"12345678"), send)
            assert getattr(caught.value, "status_code", None) == 503

    guard = Guard(app, token=None, seconds=5)
    scope = {"type": "http", "path": "/predict", "headers": []}
    await guard(scope, body(b"12345678"), _nothing)
    await guard(scope, body(b"1234567890"), _nothing)
    assert held == [b"12345678", b"1234567890"]


def body(content: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


async def _nothing(_: Any) -> None: ...


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_let_in_with_a_token_only(
    command: Command, classes_student: Trained, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv("RETORT_SERVE_TOKEN", raising=False)
    code, _, err = command("serve", classes_student.student.uri, "--host", host, "--port", "0")
    assert code == 2
    assert err.startswith(f"error: --host '{host}': other machines could ask the scorer, so set RETORT_SERVE_TOKEN")


@pytest.mark.parametrize("token", ["", "short", "with a space in its middle", "schlüsselschlüsselschlüssel"])
def test_a_token_that_is_none_is_refused(
    command: Command, classes_student: Trained, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("RETORT_SERVE_TOKEN", token)
    code, _, err = command("serve", classes_student.student.uri, "--port", "0")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: RETORT_SERVE_TOKEN: must be 16 or more printable ASCII characters")
    assert not token or token not in err
