"""Checks of an endpoint before a token is paid for, against a real server that lists its models."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from retort.config.teachers import EndpointConfig, TransformersConfig
from retort.errors import ConfigError
from retort.models.weights import Weights
from retort.problems.classification import Classification
from retort.records.base import Example
from retort.teachers.checks import check_endpoint, check_teacher
from retort.teachers.request_builder import request_builder

Answer = tuple[int, str]
MODELS = json.dumps({"data": [{"id": "small"}, {"id": "large"}]})
KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Starts a server that gives this answer to `/v1/models`; returns its address up to /v1."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer, look: Callable[[Any], None] = lambda _: None, location: str = "") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = self.headers.get("Authorization") == f"Bearer {KEY}" or answer[0] != 401
                self.send_response(
                    answer[0]
                    if self.path.partition("?")[0] == "/v1/models" and not (answer[0] == 401 and allowed)
                    else 404
                )
                look(self)
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(answer[1].encode())

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/v1"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


def config(url: str, **more: str) -> EndpointConfig:
    return EndpointConfig.model_validate({"kind": "endpoint", "model": "small", "url": url, **more})


def listing(*names: str, **more: object) -> Answer:
    return 200, json.dumps({"data": [{"id": name} for name in names], **more})


@pytest.mark.parametrize(
    "answer",
    [
        (200, MODELS),
        (404, "no such page"),
        (500, "oh"),
        (403, "Missing scopes: api.model.read"),
        listing("models/small"),
        listing("small:latest"),
        listing("small-2026-01-01"),
        listing("other", has_more=True),
        (200, json.dumps({"data": [{"id": "/weights.gguf", "owned_by": "llamacpp"}]})),
    ],
)
def test_a_server_that_may_be_right_passes(server: Callable[..., str], answer: Answer) -> None:
    assert check_endpoint(config(server(answer))) is None


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            (200, json.dumps({"data": [{"id": "large"}]})),
            "teacher.model = 'small': the server does not have it; it has",
        ),
        ((200, "<html>Welcome</html>"), "what answers there is no OpenAI-compatible server"),
        ((200, '{"status": "ok"}'), "what answers there is no OpenAI-compatible server"),
        ((403, "no"), "the server refuses a request without a key; set teacher.api_key (HTTP status 403)"),
    ],
)
def test_a_server_that_is_wrong(server: Callable[..., str], answer: Answer, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_endpoint(config(server(answer)))
    assert sentence in str(raised.value)


def test_the_list_is_asked_for_at_the_given_version_and_with_the_given_headers(
    server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[str, str | None]] = []
    url = server((200, MODELS), lambda request: seen.append((request.path, request.headers.get("api-key"))))
    monkeypatch.setenv("RETORT_TEST_KEY", KEY)
    check_endpoint(
        config(f"{url}?api-version=7&key=${{RETORT_TEST_KEY}}", api_key="${RETORT_TEST_KEY}", api_key_header="api-key")
    )
    assert seen == [(f"/v1/models?api-version=7&key={KEY}", KEY)]
    assert KEY not in caplog.text


def test_a_list_that_has_moved(server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = server((200, MODELS))
    url = server((308, ""), location=f"{there}/models")
    with pytest.raises(ConfigError, match="another host or port, or not encrypted"):
        check_endpoint(config(url))
    check_endpoint(config(server((302, ""), location="/login")))


def test_a_refused_key_is_named_and_not_shown(server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = server((401, "no"))
    monkeypatch.setenv("RETORT_TEST_KEY", "wrong-" + KEY)
    with pytest.raises(ConfigError) as raised:
        check_endpoint(config(url, api_key="${RETORT_TEST_KEY}"))
    assert "refuses the key in ${RETORT_TEST_KEY} (HTTP status 401)" in str(raised.value)
    assert KEY not in str(raised.value)
    monkeypatch.setenv("RETORT_TEST_KEY", KEY)
    check_endpoint(config(url, api_key="${RETORT_TEST_KEY}"))


def test_an_address_that_is_none() -> None:
    with pytest.raises(ConfigError, match="must be an http:// or https:// address"):
        check_endpoint(config("localhost:8000/v1"))


def test_demonstrations_longer_than_the_context(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 300}))
    teacher = TransformersConfig.model_validate({"kind": "transformers", "model": "m", "sampling": {"max_tokens": 64}})
    weights = Weights(str(tmp_path), "identity")
    many = [Example(f"l{n}", "a text of six plain words", ["bad", "good"][n % 2]) for n in range(40)]
    problem = Classification(["bad", "good"])
    check_teacher(teacher, request_builder(problem, teacher, many[:4]), weights)
    with pytest.raises(ConfigError, match=r"instruction and demonstrations have \d+ tokens.*context of 300"):
        check_teacher(teacher, request_builder(problem, teacher, many), weights)
