"""`retort serve` as a separate process on loopback: answers, limits, concurrent requests and shutdown."""

import concurrent.futures
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from retort.serving.limits import MOST_BYTES
from retort.serving.scorer import MOST_TEXTS
from retort.serving.texts import MOST_CHARACTERS
from serve_process import Server, serving

Trained = Any


@pytest.fixture(scope="module")
def server(slots_student: Trained) -> Iterator[Server]:
    with serving(slots_student.student.uri) as running:
        yield running


def test_it_answers_as_the_evaluation_did(server: Server, slots_student: Trained) -> None:
    from retort.problems import problem_for

    rows, problem = slots_student.evaluated(), problem_for(slots_student.config.problem)
    model = {"name": None, "version": None, "key": slots_student.student.key}
    assert httpx.get(f"{server.url}/health").json() == {"model": model, "follows": None}
    answer = server.ask(*(row["text"] for row in rows))
    assert answer.status_code == 200
    assert answer.json()["model"] == model
    for row, prediction in zip(rows, answer.json()["predictions"], strict=True):
        assert prediction["label"] == problem.render(row["text"], row["predicted"])
        assert prediction["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
        assert prediction["label"].startswith(f"[IN:{prediction['intent']} ")


def test_many_at_once_each_get_their_own(server: Server, slots_student: Trained) -> None:
    texts = [row["text"] for row in slots_student.evaluated()]
    alone = {text: server.ask(text).json()["predictions"] for text in texts}
    with concurrent.futures.ThreadPoolExecutor(16) as pool, httpx.Client(timeout=30) as client:

        def ask(number: int) -> bool:
            text = texts[number % len(texts)]
            (got,) = client.post(f"{server.url}/predict", json={"texts": [text]}).json()["predictions"]
            (expected,) = alone[text]
            return bool(got["label"] == expected["label"] and abs(got["confidence"] - expected["confidence"]) < 1e-4)

        assert all(pool.map(ask, range(200)))


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b'{"texts": []}', 422, "'texts' is empty"),
        (b'{"texts": ["fine", "  "]}', 422, "texts[1] is empty"),
        (b'{"texts": ["\\ud83d"]}', 422, "texts"),
        (b'{"texts": "one"}', 422, "texts: Input should be a valid list"),
        (b'{"texts": [1]}', 422, "texts.0: Input should be a valid string"),
        (b'{"texts": ["a"], "model": "b"}', 422, "model: Extra inputs are not permitted"),
        (b'{"texts": ["a"', 422, "JSON"),
        (b"", 422, "the body: Field required"),
        (json.dumps({"texts": ["a"] * (MOST_TEXTS + 1)}).encode(), 413, "at most 256"),
        (json.dumps({"texts": ["a" * (MOST_CHARACTERS + 1)]}).encode(), 413, "texts[0] has 100,001 characters"),
        (b'{"texts": ["' + b"a" * MOST_BYTES + b'"]}', 413, "the body has more than"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_it_cannot_take_is_refused_in_a_sentence(server: Server, body: bytes, status: int, sentence: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/predict", content=body, headers=headers, timeout=30)
    assert answer.status_code == status, answer.text
    (detail,) = answer.json().values()
    assert sentence in detail
    assert len(detail) < 200
    assert server.ask("still there").status_code == 200


Command = Callable[..., tuple[int, str, str]]


def test_a_mistake_gets_one_sentence(command: Command, classes_student: Trained) -> None:
    code, _, err = command("serve", "/nothing/here")
    assert (code, len(err.splitlines())) == (2, 1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = command("serve", classes_student.student.uri, "--port", port)
        watched, _, told = command("serve", classes_student.student.uri, "--port", "0", "--metrics-port", str(port))
    assert (code, watched) == (2, 2)
    assert err.startswith(f"error: --host '127.0.0.1' --port {port}: cannot be had (Address already in use)")
    assert told.startswith(f"error: --host '127.0.0.1' --metrics-port {port}: cannot be had (Address already in use)")
    code, _, err = command("serve", classes_student.student.uri, "--host", "no.such.host.invalid")
    assert code == 2
    assert err.startswith("error: --host 'no.such.host.invalid': no address of this machine")


def test_sigterm_ends_it_after_what_is_under_way(server: Server) -> None:
    """Must be the last test here: all share one server, which takes seconds to start."""
    texts, statuses = ["play the film by great " * 20] * 100, list[int]()

    def keep_asking() -> None:
        with suppress(httpx.ConnectError):  # the server no longer listens
            while True:
                statuses.append(server.ask(*texts).status_code)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    while not statuses:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    asking.join()
    assert set(statuses) == {200}
    assert len(server.lines) == 1
