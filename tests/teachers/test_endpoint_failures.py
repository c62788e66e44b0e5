"""The endpoint teacher against a server with faults: nothing is lost, nothing completed is requested twice."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from endpoint_server import EndpointServer, all_answered_once, ask, config, requests, texts
from retort.errors import ConfigError, TeacherUnavailable
from retort.teachers.endpoint.client import open_endpoint
from retort.teachers.endpoint.pacing import MAX_BACKOFF_SECONDS, backoff, retry_after
from retort.teachers.endpoint.sender import FREE_WAITS
from retort.teachers.requests import Completion, CompletionRequest, Rejection

# The failure policy


@pytest.mark.parametrize(
    "fault", ["error 500", "error 503", "error 408", "error 529", "cut", "truncated", "nonsense", "empty", "{}", "list"]
)
def test_what_may_heal_is_retried_and_only_that(endpoint_server: EndpointServer, fault: str) -> None:
    endpoint_server.fail(fault_named(endpoint_server, fault), times=2, item="row 00007")
    endpoint_server.fail(fault_named(endpoint_server, fault), times=1, item="row 00011")
    outcomes = ask(endpoint_server, requests(30), concurrency=4)
    all_answered_once(endpoint_server, outcomes, 30)
    assert endpoint_server.asked["row 00007"] == 3
    assert endpoint_server.asked["row 00011"] == 2
    assert sum(endpoint_server.asked.values()) == 33


def fault_named(server: EndpointServer, name: str) -> Any:
    if name.startswith("error "):
        return server.error(int(name.removeprefix("error ")), "the engine <b>died</b>")
    texts = {"nonsense": '{"choices": [{"message": 5}]}', "empty": "", "{}": "{}", "list": "[1]"}
    return server.status(200, texts[name]) if name in texts else getattr(server, name)


def test_a_hanging_request_is_retried(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.hang, times=3)
    outcomes = ask(endpoint_server, requests(10), timeout_seconds=1.5)
    all_answered_once(endpoint_server, outcomes, 10)
    assert sum(endpoint_server.asked.values()) == 13


def test_doubled_choices_are_one_completion(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.doubled)
    all_answered_once(endpoint_server, ask(endpoint_server, requests(10)), 10)


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("error 500", "unavailable", r"The server failed in 3 tries: it answered HTTP 500: the engine died"),
        ("cut", "unavailable", r"The server failed in 3 tries: it cut the connection"),
        (
            "truncated",
            "bad-response",
            r"The server failed in 3 tries: its answer is no chat completion: it is not JSON",
        ),
        ("nonsense", "bad-response", r"a choice holds no message with a text"),
        ("list", "bad-response", r"it is no JSON object"),
    ],
)
def test_a_row_that_never_heals_is_rejected_alone(
    endpoint_server: EndpointServer, fault: str, reason: str, words: str
) -> None:
    endpoint_server.fail(fault_named(endpoint_server, fault), item="row 00003")
    outcomes = ask(endpoint_server, requests(10), retries=2, concurrency=2)
    (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    assert (refusal.key, refusal.reason) == (requests(4)[3].key, reason)
    assert re.search(words, refusal.detail)
    assert bool(refusal.raw) == (fault != "cut")
    assert endpoint_server.asked["row 00003"] == 3
    assert len(outcomes) == 10


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_row_that_the_server_refuses_is_not_retried(endpoint_server: EndpointServer, status: int) -> None:
    endpoint_server.fail(endpoint_server.error(status, "prompt is too long"), item="row 00003")
    outcomes = ask(endpoint_server, requests(40))
    (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    assert refusal.reason == f"http-{status}"
    assert refusal.detail == f"The server refused the row (HTTP {status}: prompt is too long)"
    assert json.loads(refusal.raw)["error"]["message"] == "prompt is too long"
    assert sum(endpoint_server.asked.values()) == 40


def test_if_all_rows_are_refused_it_is_not_the_rows(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(400, "unknown parameter: 'top_p'"))
    with pytest.raises(ConfigError, match=r"refuses all rows, the first 20 with HTTP 400: unknown parameter"):
        ask(endpoint_server, requests(500), concurrency=4)
    assert sum(endpoint_server.asked.values()) < 30


def test_many_rejections_after_a_completion_are_the_rows(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(400, "no"), item="row 0000")
    endpoint_server.fail(endpoint_server.error(400, "no"), item="row 0002")
    outcomes = ask(endpoint_server, list(reversed(requests(50))), concurrency=1)
    assert sum(isinstance(outcome, Rejection) for outcome in outcomes) == 20


def test_different_refusals_are_the_rows(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(400, "no"), times=19)
    endpoint_server.fail(endpoint_server.error(413, "long"), times=2)
    assert len(ask(endpoint_server, requests(40), concurrency=1)) == 40


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((401, "Incorrect API key"), r"teacher.api_key: .* refuses a request without a key \(HTTP 401: Incorrect API"),
        ((403, "Not yours"), r"teacher.api_key: .*HTTP 403: Not yours"),
        (
            (404, "no model dummy"),
            r"knows no model 'dummy' \(teacher.model\).*up to and with /v1 \(HTTP 404: no model d",
        ),
        ((405, "Method Not Allowed"), r"no OpenAI-compatible server .*HTTP 405: Method Not Allowed"),
        ((501, "Unsupported"), r"no OpenAI-compatible server .*HTTP 501"),
        ((302, ""), r"no OpenAI-compatible server .*: it answered HTTP 302$"),
    ],
)
def test_what_the_config_is_to_blame_for_ends_at_once(
    endpoint_server: EndpointServer, fault: tuple[int, str], words: str
) -> None:
    endpoint_server.fail(endpoint_server.error(*fault) if fault[1] else endpoint_server.status(fault[0]))
    with pytest.raises(ConfigError, match=words):
        ask(endpoint_server, requests(100), concurrency=4)
    assert sum(endpoint_server.asked.values()) <= 4


def test_a_web_page_is_no_server(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.status(200, "<html><body>Welcome to  nginx!</body></html>"))
    with pytest.raises(ConfigError, match=r"no OpenAI-compatible server .* it answered a page: Welcome to nginx!$"):
        ask(endpoint_server, requests(5))


def test_something_that_speaks_no_http_is_no_server() -> None:
    with listening(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        with pytest.raises(ConfigError, match=r"no OpenAI-compatible server .*: it does not speak HTTP$"):
            ask(f"http://127.0.0.1:{port}/v1", requests(2))
        with pytest.raises(ConfigError, match=r"no OpenAI-compatible server .*: its TLS is refused"):
            ask(f"https://127.0.0.1:{port}/v1", requests(2))


@contextmanager
def listening(words: bytes) -> Iterator[int]:
    """A port that sends these bytes on every connection and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if not connection.recv(65536):
                        return
                    connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        try:
            yield port
        finally:
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def test_after_a_completion_a_page_is_only_malformed_and_405_ends_the_run(endpoint_server: EndpointServer) -> None:
    with open_endpoint(config(endpoint_server, retries=1), backoff_seconds=0.001) as client:
        assert len(list(client.ask(iter(requests(1))))) == 1
        endpoint_server.fail(endpoint_server.status(200, "<html>"), times=2)
        endpoint_server.fail(endpoint_server.status(405))
        (first,) = client.ask(iter(requests(1)))
        assert getattr(first, "reason", None) == "bad-response"
        with pytest.raises(TeacherUnavailable, match=r"no longer answers as it did: .*HTTP 405"):
            list(client.ask(iter(requests(1))))


def test_402_ends_the_run_and_may_heal(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(402, "Insufficient balance"))
    with pytest.raises(TeacherUnavailable, match=r"wants to be paid first \(HTTP 402: Insufficient balance\)"):
        ask(endpoint_server, requests(5))


def test_completions_in_flight_are_kept_when_the_run_ends(endpoint_server: EndpointServer) -> None:
    endpoint_server.delay_seconds = 0.2
    endpoint_server.fail(endpoint_server.error(401, "revoked"), item="row 00000")
    kept: list[Completion | Rejection] = []
    with open_endpoint(config(endpoint_server, concurrency=8)) as client, pytest.raises(ConfigError, match="revoked"):
        kept.extend(client.ask(iter(requests(100))))
    assert texts(kept) == ["food"] * 7
    assert sum(endpoint_server.asked.values()) == 8


# 429


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_pauses_all_requests_and_is_no_try(endpoint_server: EndpointServer, as_date: bool) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    endpoint_server.fail(endpoint_server.error(429, "slow down", Retry_After=date if as_date else "0.3"), times=8)
    start = time.monotonic()
    outcomes = ask(endpoint_server, requests(40), concurrency=4, retries=0)
    # The first four get a 429 at once; then one goes ahead, and while it is refused the others keep waiting.
    # (A date has no fractions of a second.)
    assert 0.9 < time.monotonic() - start < 30
    all_answered_once(endpoint_server, outcomes, 40)
    assert sum(endpoint_server.asked.values()) == 48


def test_limits_hold_after_a_pause(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(429, "slow down", Retry_After="0.3"), times=1)
    start = time.monotonic()
    ask(endpoint_server, requests(16), requests_per_minute=600, tokens_per_minute=10_000_000, concurrency=1)
    # What was free before the pause is not free after it: 0.3 s, and then 0.1 s for each.
    assert 1.5 < time.monotonic() - start < 30


def test_429_without_retry_after_is_waited_out(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.status(429), times=FREE_WAITS)
    all_answered_once(endpoint_server, ask(endpoint_server, requests(3), concurrency=1, retries=0), 3)


def test_a_row_may_wait_as_long_as_others_are_completed(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.status(429), times=3 * FREE_WAITS, item="row 00000")
    outcomes = ask(endpoint_server, requests(1000), concurrency=2, retries=0)
    all_answered_once(endpoint_server, outcomes, 1000)


def test_a_server_that_only_says_429_is_unavailable(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(429, "quota exceeded"))
    with pytest.raises(TeacherUnavailable, match=r"not available: it answered HTTP 429: quota exceeded \(11 tries\)"):
        ask(endpoint_server, requests(3), concurrency=1, retries=0)
    assert sum(endpoint_server.asked.values()) == FREE_WAITS + 1


def test_a_pause_of_hours_ends_the_run(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(429, "daily limit", Retry_After="7200"))
    with pytest.raises(TeacherUnavailable, match=r"asks to wait for 7200 s \(HTTP 429: daily limit\)"):
        ask(endpoint_server, requests(5))


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("2.5", 2.5), ("-1", 0.0), ("soon", None), ("nan", None), ("", None)]
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after({} if value is None else {"Retry-After": value}) == seconds
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 -0000"}) == 0.0
    assert retry_after({"Retry-After": "2", "retry-after-ms": "1500"}) == 1.5
    assert retry_after({"Retry-After": "2", "retry-after-ms": "soon"}) == 2.0


def test_backoff_doubles_up_to_a_minute() -> None:
    for failures in (1, 2, 3, 7, 2000):
        longest = min(2.0 ** min(failures - 1, 10), MAX_BACKOFF_SECONDS)
        assert longest / 2 <= backoff(1.0, failures) <= longest


# A server that is not there


def test_a_refused_connection_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        TeacherUnavailable, match=r"not available: it cannot be reached \(Connection refused\) \(3 tries"
    ):
        ask(f"http://127.0.0.1:{port}/v1", requests(2), retries=2)


def test_a_name_that_nobody_knows_is_unavailable() -> None:
    with pytest.raises(TeacherUnavailable, match=r"it cannot be reached \(.+\) \(1 tries\)"):
        ask("http://no-such-host.invalid/v1", requests(1), retries=0)


def test_a_server_that_serves_nothing_is_unavailable_even_for_few_rows(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.status(503, "<h1>No healthy upstream</h1>"))
    with pytest.raises(TeacherUnavailable, match=r"it answered HTTP 503: No healthy upstream \(3 tries\)"):
        ask(endpoint_server, requests(2), retries=2)


def test_a_model_that_is_gone_for_a_moment_is_retried(endpoint_server: EndpointServer) -> None:
    with open_endpoint(config(endpoint_server, retries=2), backoff_seconds=0.001) as client:
        assert len(texts(list(client.ask(iter(requests(1)))))) == 1
        endpoint_server.fail(endpoint_server.error(404, "no model"), times=2)
        assert len(texts(list(client.ask(iter(requests(1)))))) == 1


def test_samples_that_came_before_the_server_went_are_kept(endpoint_server: EndpointServer) -> None:
    def then_go(body: Any) -> str:
        endpoint_server.fail(endpoint_server.status(503))
        return "food"

    endpoint_server.most_choices, endpoint_server.reply = 1, then_go
    kept: list[Completion | Rejection] = []
    asked = requests(1, samples=(0, 1), sampling_temperature=1.0)
    with open_endpoint(config(endpoint_server, retries=0)) as client, pytest.raises(TeacherUnavailable):
        kept.extend(client.ask(iter(asked)))
    assert texts(kept) == ["food"]


@pytest.mark.parametrize("fault", ["error 500", "truncated", "cut"])
def test_a_server_that_fails_for_all_is_unavailable_and_what_came_is_kept(
    endpoint_server: EndpointServer, fault: str
) -> None:
    def then_fail() -> Iterator[CompletionRequest]:
        yield from requests(500)[:30]
        endpoint_server.fail(fault_named(endpoint_server, fault))
        yield from requests(500)[30:]

    kept: list[Completion | Rejection] = []
    with open_endpoint(config(endpoint_server, concurrency=4, retries=8), backoff_seconds=0.001) as client:
        with pytest.raises(TeacherUnavailable, match=r"the teacher at http://127.0.0.1:\d+/v1 is not available: it"):
            kept.extend(client.ask(then_fail()))
        assert len(texts(kept)) == len(endpoint_server.answered) > 0
        endpoint_server.heal()
        late = list(client.ask(iter(requests(500)[len(kept) :])))
    assert len(texts(late)) == 500 - len(kept)
    assert max(endpoint_server.answered.values()) == 1
