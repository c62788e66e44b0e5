"""The endpoint teacher against a real HTTP server: what is sent and read, limits, closing, the key."""

import itertools
import json
import math
import os
import re
import resource
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from endpoint_server import SHARED, EndpointServer, all_answered_once, ask, config, requests, texts
from retort.errors import ConfigError
from retort.problems import Constraint
from retort.teachers.endpoint.chat import MissingLogprobs, parse_response, seed
from retort.teachers.endpoint.client import open_endpoint
from retort.teachers.endpoint.connection import redactor
from retort.teachers.endpoint.firsttoken import first_token_scores
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Rejection, Turn

CHOICE = Constraint(choice=("food", "drink", 'so-called "food"'))
GRAMMAR = Constraint(grammar='root ::= "a" | "b"')


# Requests and responses


def test_every_request_is_completed_once_over_few_connections(endpoint_server: EndpointServer) -> None:
    outcomes = ask(endpoint_server, requests(300), concurrency=8)
    all_answered_once(endpoint_server, outcomes, 300)
    assert sum(endpoint_server.asked.values()) == 300
    assert 1 < endpoint_server.most_under_way <= 8
    assert len(endpoint_server.connections) <= 8
    assert outcomes[0] == Completion(outcomes[0].key, 0, "food", "stop", 100, 90, 3)


def test_a_client_can_be_used_again_and_with_no_requests(endpoint_server: EndpointServer) -> None:
    with open_endpoint(config(endpoint_server)) as client:
        assert client.facts == {"retries": 0, "waited_seconds": 0.0}
        assert list(client.ask(iter(()))) == []
        assert len(list(client.ask(iter(requests(3))))) == 3
        assert len(list(client.ask(iter(requests(5))))) == 5


def test_the_body_is_the_protocol_s_and_its_start_the_same_for_all(endpoint_server: EndpointServer) -> None:
    asked = requests(2, sampling_temperature=0.5, top_p=0.9, max_tokens=17)
    other = CompletionRequest(b"o" * 16, Prompt((Turn("user", "other"),), "lone \ud800 surrogate"))
    ask(endpoint_server, [*asked, other], concurrency=1)
    first, _, last = endpoint_server.bodies
    assert first == {
        "model": "dummy",
        "messages": [{"role": turn.role, "content": turn.content} for turn in SHARED]
        + [{"role": "user", "content": "row 00000"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 17,
        "seed": seed(asked[0].key, 0),
    }
    starts = [raw.partition(b"row")[0] for raw in endpoint_server.raw_bodies[:2]]
    assert starts[0] == starts[1]
    assert last["messages"] == [{"role": "user", "content": "other"}, {"role": "user", "content": other.prompt.item}]
    assert last.keys() == {"model", "messages", "temperature", "max_tokens"}


def test_seeds_differ_by_row_and_sample_and_repeat() -> None:
    seeds = {seed(n.to_bytes(16, "big"), sample) for n in range(100) for sample in range(3)}
    assert len(seeds) == 300
    assert seed(b"k" * 16, 2) == seed(b"k" * 16, 0) + 2
    assert all(0 <= value < 2**31 for value in seeds)


@pytest.mark.parametrize(
    ("style", "constraint", "sent"),
    [
        ("none", CHOICE, None),
        ("vllm", CHOICE, ("structured_outputs", {"choice": list(CHOICE.choice or ())})),
        ("vllm", GRAMMAR, ("structured_outputs", {"grammar": GRAMMAR.grammar})),
        ("vllm", None, None),
        ("json-schema", GRAMMAR, None),
    ],
)
def test_constraints_are_sent_in_the_server_s_style(
    endpoint_server: EndpointServer, style: str, constraint: Constraint | None, sent: tuple[str, Any] | None
) -> None:
    ask(endpoint_server, requests(1, constraint=constraint), constraint_style=style)
    (body,) = endpoint_server.bodies
    assert {name: body[name] for name in ("structured_outputs", "response_format") if name in body} == dict(
        [sent] if sent else []
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (json.dumps({"label": 'so-called "food"'}), 'so-called "food"'),
        (' {"label":"drink"}\n', "drink"),
        ('{"label": "fo', '{"label": "fo'),
        ("food", "food"),
        ('{"label": 1}', '{"label": 1}'),
        ('{"label": "a", "b": 2}', '{"label": "a", "b": 2}'),
    ],
)
def test_a_json_schema_completion_is_unwrapped(endpoint_server: EndpointServer, written: str, read: str) -> None:
    endpoint_server.reply = lambda body: written
    assert texts(ask(endpoint_server, requests(1, constraint=CHOICE), constraint_style="json-schema")) == [read]
    schema = endpoint_server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(CHOICE.choice or ())


@pytest.mark.parametrize("most", [64, 2, 1])
def test_samples_are_requested_together_or_as_the_server_gives_them(endpoint_server: EndpointServer, most: int) -> None:
    endpoint_server.most_choices = most
    number = itertools.count()
    endpoint_server.reply = lambda body: f"text {next(number)}"
    (request,) = requests(1, samples=(0, 1, 2, 7), sampling_temperature=1.0)
    completions = [completion for completion in ask(endpoint_server, [request]) if isinstance(completion, Completion)]
    assert [(completion.sample, completion.text) for completion in completions] == [
        (0, "text 0"),
        (1, "text 1"),
        (2, "text 2"),
        (7, "text 3"),
    ]
    num_requests = math.ceil(4 / most)
    assert len(endpoint_server.bodies) == num_requests
    assert endpoint_server.bodies[0]["n"] == 4
    assert sum(completion.prompt_tokens for completion in completions) == 100 * num_requests
    assert sum(completion.cached_tokens for completion in completions) == 90 * num_requests
    assert sum(completion.completion_tokens for completion in completions) == 3 * num_requests


def test_usage_and_texts_may_be_missing(endpoint_server: EndpointServer) -> None:
    endpoint_server.usage, endpoint_server.reply, endpoint_server.finish_reason = None, lambda body: None, "length"
    (completion,) = ask(endpoint_server, requests(1))
    assert completion == Completion(completion.key, 0, "", "length", 0, 0, 0)
    endpoint_server.usage = {"prompt_tokens": "7", "prompt_tokens_details": None, "completion_tokens": -1}
    (completion,) = ask(endpoint_server, requests(1))
    assert completion == Completion(completion.key, 0, "", "length", 0, 0, 0)


def test_a_text_in_parts_is_joined_without_the_thoughts(endpoint_server: EndpointServer) -> None:
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [thoughts, {"type": "text", "text": "fo"}, {"type": "text", "text": "od"}]
    endpoint_server.reply, endpoint_server.finish_reason = lambda body: parts, "model_length"
    (completion,) = ask(endpoint_server, requests(1))
    assert isinstance(completion, Completion)
    assert (completion.text, completion.finish_reason) == ("food", "length")
    assert sum(endpoint_server.asked.values()) == 1


# Verbalizers


def test_verbalizers_are_scored_by_the_first_token(endpoint_server: EndpointServer) -> None:
    shares = {"fo": 0.5, " food": 0.2, "dr": 0.1, "f": 0.05, "\n": 0.05, "gas": 0.01, "foo": 0.01}
    endpoint_server.alternatives = [(token, math.log(share)) for token, share in shares.items()]
    (completion,) = ask(endpoint_server, requests(1, verbalizers=("food", "drink", "fad", "gas")))
    assert isinstance(completion, Completion)
    # `f` begins two verbalizers and counts for neither; no listed token begins `fad`, so it gets the floor.
    assert [math.exp(score) for score in completion.scores] == pytest.approx([0.71, 0.1, 0.01, 0.01])
    assert (completion.text, completion.finish_reason, completion.sample) == ("food", "stop", 0)
    (body,) = endpoint_server.bodies
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 1.0)


def test_the_floor_is_no_more_than_what_is_not_listed() -> None:
    scores = first_token_scores(("food", "drink", "gas"), [("food", math.log(0.98))])
    assert [math.exp(score) for score in scores] == pytest.approx([0.98, 0.01, 0.01])
    certain, *others = first_token_scores(("food", "drink", "gas"), [("food", 0.0), ("the", -9999.0)])
    assert (certain, others) == (0.0, [-9999.0, -9999.0])
    rounded = first_token_scores(("food", "drink"), [("food", math.log(0.5)), ("fo", math.log(0.50001))])
    assert rounded[0] == 0.0
    assert math.exp(rounded[1]) == pytest.approx(1e-7)


@pytest.mark.parametrize("pair", [("correct", "correct but incomplete"), ("a", " a "), ("", "x")])
def test_verbalizers_that_begin_alike_are_refused_before_anything_is_sent(
    endpoint_server: EndpointServer, pair: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"teacher.verbalizers: .* begins with .* labels: hard"):
        ask(endpoint_server, requests(3, verbalizers=(*pair, "zebra")))
    assert not endpoint_server.bodies


def test_a_server_without_log_probabilities_is_the_config_s_fault(endpoint_server: EndpointServer) -> None:
    with pytest.raises(ConfigError, match=r"teacher.url = .* no use for labels: soft, since it holds no log-prob"):
        ask(endpoint_server, requests(50, verbalizers=("food", "drink")))


def test_a_row_without_log_probabilities_is_rejected(endpoint_server: EndpointServer) -> None:
    endpoint_server.alternatives = [("food", -0.1), ("drink", -3.0)]
    with open_endpoint(config(endpoint_server)) as client:
        assert isinstance(next(client.ask(iter(requests(1, verbalizers=("food", "drink"))))), Completion)
        endpoint_server.alternatives = []
        (refusal,) = client.ask(iter(requests(1, verbalizers=("food", "drink"))))
    assert isinstance(refusal, Rejection)
    assert refusal.reason == "no-logprobs"
    assert "choices" in refusal.raw


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5, "much"])
def test_log_probabilities_that_are_none_are_told(value: object) -> None:
    listed = [{"token": "food", "logprob": value}]
    choice = {"message": {}, "logprobs": {"content": [{"top_logprobs": listed}]}}
    (request,) = requests(1, verbalizers=("food", "drink"))
    with pytest.raises(MissingLogprobs):
        parse_response(json.dumps({"choices": [choice]}).encode(), request, (0,), "none")


# Limits, closing, secrets


def test_requests_per_minute(endpoint_server: EndpointServer) -> None:
    start = time.monotonic()
    ask(endpoint_server, requests(20), requests_per_minute=600)
    # The first second's share is free.
    assert 0.8 < time.monotonic() - start < 30


def test_tokens_per_minute_are_corrected_by_usage(endpoint_server: EndpointServer) -> None:
    endpoint_server.usage = {"prompt_tokens": 1990, "completion_tokens": 10}
    start = time.monotonic()
    ask(endpoint_server, requests(5), tokens_per_minute=240_000, concurrency=1)
    assert 0.8 < time.monotonic() - start < 30


def test_tokens_per_minute_are_estimated_from_characters(endpoint_server: EndpointServer) -> None:
    endpoint_server.usage = {"prompt_tokens": 2000, "completion_tokens": 0}
    long = [CompletionRequest(bytes([n]) * 16, Prompt((), "word " * 1600)) for n in range(5)]
    start = time.monotonic()
    ask(endpoint_server, long, tokens_per_minute=240_000)
    assert 0.8 < time.monotonic() - start < 30
    assert endpoint_server.most_under_way < 5


def test_few_requests_are_taken_ahead_and_completions_do_not_wait_for_requests(endpoint_server: EndpointServer) -> None:
    taken = itertools.count()

    def slowly() -> Iterator[CompletionRequest]:
        for request in requests(10_000):
            next(taken)
            time.sleep(0.02)
            yield request

    with open_endpoint(config(endpoint_server, concurrency=50)) as client:
        next(client.ask(slowly()))
        assert next(taken) <= 50, "without an answer, 50 more wait for the 50 under way"
    endpoint_server.fail(endpoint_server.hang)
    with open_endpoint(config(endpoint_server, concurrency=5, timeout_seconds=0.3, retries=0)) as client:
        quick = iter(requests(10_000))
        next(client.ask(quick))
        assert int.from_bytes(next(quick).key, "big") <= 11


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def eventually(check: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    return check()


def consume(outcomes: Iterator[Completion | Rejection], way: str) -> None:
    for _ in outcomes:
        if way == "consumer":
            raise KeyError("consumer")


@pytest.mark.parametrize("way", ["closed", "broken", "consumer", "questions"])
def test_closing_in_the_middle_leaves_nothing_behind(endpoint_server: EndpointServer, way: str) -> None:
    before, threads = open_descriptors(), threading.active_count()
    endpoint_server.fail(endpoint_server.hang, times=5)

    def asked() -> Iterator[CompletionRequest]:
        yield from requests(50)
        raise KeyError("questions")

    if way == "closed":
        with open_endpoint(config(endpoint_server, concurrency=10)) as client:
            outcomes: Any = client.ask(asked())
            next(outcomes)
            outcomes.close()
            assert sum(endpoint_server.asked.values()) - sum(endpoint_server.answered.values()) >= 5
            assert len(list(client.ask(iter(requests(5))))) == 5
    elif way == "broken":
        with open_endpoint(config(endpoint_server, concurrency=10)) as client:
            outcomes = client.ask(asked())
            next(outcomes)
        outcomes.close()
    else:
        with pytest.raises(KeyError, match=way), open_endpoint(config(endpoint_server, concurrency=10)) as client:
            consume(client.ask(asked()), way)
    assert threading.active_count() == threads
    assert eventually(lambda: open_descriptors() <= before)


def test_closing_just_as_requests_time_out(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.hang)
    for _ in range(20):
        with open_endpoint(config(endpoint_server, concurrency=20, timeout_seconds=0.02, retries=0)) as client:
            next(client.ask(iter(requests(100))))


def test_what_is_no_address_is_the_config_s_fault() -> None:
    for url in (
        "localhost:8000/v1",
        "ftp://a/v1",
        "http://",
        "http://a:99999/v1",
        "http://a/v1#b",
    ):
        with pytest.raises(ConfigError, match=f"teacher.url = '{re.escape(url)}' must be an http:// or https://"):
            ask(url, [])


def test_the_whole_address_is_too_much() -> None:
    with pytest.raises(ConfigError, match="leave /chat/completions out; Retort adds it"):
        ask("http://a/v1/chat/completions", [])


def test_more_requests_at_once_than_open_files(endpoint_server: EndpointServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = open_descriptors() + 450  # the server's ends are this process's too
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        told = rf"teacher.concurrency = {files - 99} needs more than the {files} open .* at most {files - 100}$"
        with pytest.raises(ConfigError, match=told):
            ask(endpoint_server, [], concurrency=files - 99)
        all_answered_once(endpoint_server, ask(endpoint_server, requests(1000), concurrency=150), 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_key_is_sent_and_appears_nowhere_else(
    endpoint_server: EndpointServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret"
    monkeypatch.setenv("RETORT_TEST_KEY", f"{key}\n")
    monkeypatch.setenv("RETORT_TEST_URL", endpoint_server.url)
    caplog.set_level(0)
    secret = config("${RETORT_TEST_URL}", api_key="${RETORT_TEST_KEY}", retries=0)
    endpoint_server.fail(endpoint_server.error(400, f"bad {key} for row"), times=1)
    with open_endpoint(secret) as client:
        (refusal,) = client.ask(iter(requests(1)))
        assert key not in repr((client, vars(client), refusal))
        assert "bad *** for row" in repr(refusal)
    endpoint_server.fail(endpoint_server.error(401, f"Incorrect API key provided: {key}"))
    with pytest.raises(ConfigError) as caught, open_endpoint(secret) as client:
        list(client.ask(iter(requests(1))))
    assert str(caught.value) == (
        "teacher.api_key: ${RETORT_TEST_URL} refuses the key in ${RETORT_TEST_KEY} "
        "(HTTP 401: Incorrect API key provided: ***)"
    )
    # The test's own frame holds it, as does no other.
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    assert not [line for line in shown if key in line and "key = " not in line]
    assert key not in caplog.text
    assert endpoint_server.headers[0]["Authorization"] == f"Bearer {key}"


@pytest.mark.parametrize("sent", ["{}", "{slashed}", "{unicode}", "{quoted}"])
def test_a_key_is_redacted_however_json_and_addresses_write_it(sent: str) -> None:
    key = 'sk-"a/b+c\\d='
    plain, quoted = json.dumps(key)[1:-1], quote(key, safe="")
    unicode = "".join(f"\\u{ord(sign):04X}" for sign in key)
    echo = sent.format(key, slashed=plain.replace("/", "\\/"), unicode=unicode, quoted=quoted)
    told = redactor([key])(b'{"error": "the key ' + echo.encode() + b' is none"}')
    assert json.loads(told) == {"error": "the key *** is none"}
    assert redactor([])(b"as it was") == b"as it was"


def test_a_placeholder_key_is_no_reason_to_change_an_answer(
    endpoint_server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_TEST_KEY", "EMPTY")
    endpoint_server.reply = lambda body: "EMPTY"
    assert texts(ask(endpoint_server, requests(1), api_key="${RETORT_TEST_KEY}")) == ["EMPTY"]
    endpoint_server.fail(endpoint_server.error(400, "EMPTY is no key"))
    (refusal,) = ask(endpoint_server, requests(1), api_key="${RETORT_TEST_KEY}")
    assert "*** is no key" in repr(refusal)


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETORT_TEST_KEY", raising=False)
    keyed = config("http://127.0.0.1:9/v1", api_key="${RETORT_TEST_KEY}")
    with pytest.raises(ConfigError, match="RETORT_TEST_KEY, which is not set"), open_endpoint(keyed):
        pass
    for key in ("", " ", "a\nb", "schlüssel"):
        monkeypatch.setenv("RETORT_TEST_KEY", key)
        with (
            pytest.raises(ConfigError, match=r"teacher.api_key: \$\{RETORT_TEST_KEY\} is empty, or"),
            open_endpoint(keyed),
        ):
            pass
