"""What vendors want to be told in their own way, against the test server: body, headers, addresses, thoughts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from endpoint_server import EndpointServer, all_answered_once, ask, config, requests, texts
from retort.config import ClassificationConfig, TextConfig
from retort.config.teachers import EndpointConfig, LlmTeacherConfig, TransformersConfig, VllmConfig
from retort.errors import ConfigError, TeacherUnavailable
from retort.problems import Constraint, Problem, problem_for
from retort.recipes import load_config
from retort.records.base import Example
from retort.teachers.constraints import check_constrained, held_to
from retort.teachers.endpoint.client import open_endpoint
from retort.teachers.endpoint.structured import constraint_settings, unwrap_label, wrapping
from retort.teachers.identity import teacher_identity
from retort.teachers.request_builder import Pending, request_builder
from retort.teachers.requests import Completion, Rejection
from retort.teachers.salvage import parse_completion

EXAMPLE = Path(__file__).parents[2] / "examples" / "snips.yaml"
DOCUMENT = Path(__file__).parents[2] / "docs" / "teachers.md"
ONE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


# The body


def test_a_reasoning_model_is_asked_in_its_own_words(endpoint_server: EndpointServer) -> None:
    teacher = config(
        endpoint_server,
        token_limit_name="max_completion_tokens",
        sampling={"sampling_temperature": None, "max_tokens": 20},
        reasoning_tokens=1000,
        body={"reasoning_effort": "low", "provider": {"order": ["a"]}},
    )
    problem = problem_for(ClassificationConfig(kind="classification", labels=["food", "drink"]))
    builder = request_builder(problem, teacher, [])
    request = builder.request(Pending(0, "u0", "apple"), {0: b"k" * 16}, attempt=1)
    with open_endpoint(teacher) as client:
        assert len(list(client.ask(iter([request])))) == 1
    (body,) = endpoint_server.bodies
    assert {name: value for name, value in body.items() if name not in ("model", "messages")} == {
        "max_completion_tokens": 1020,
        "reasoning_effort": "low",
        "provider": {"order": ["a"]},
    }


def test_another_name_for_the_seed_and_one_sample_a_request(endpoint_server: EndpointServer) -> None:
    asked = requests(1, samples=(0, 1, 2), sampling_temperature=1.0)
    assert len(ask(endpoint_server, asked, seed_name="random_seed", samples_per_request=1)) == 3
    assert len({body["random_seed"] for body in endpoint_server.bodies}) == 3
    assert not any({"n", "seed"} & body.keys() for body in endpoint_server.bodies)
    ask(endpoint_server, asked, seed_name=None)
    assert not {"seed", "random_seed"} & endpoint_server.bodies[-1].keys()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"body": {"temperature": 1}}, "Retort sets 'temperature' itself; teacher.sampling.sampling_temperature says"),
        ({"body": {"max_completion_tokens": 1}}, "Retort sets 'max_completion_tokens' itself"),
        ({"body": {"messages": []}}, "Retort sets 'messages' itself; teacher.prompt says"),
        ({"body": {"stream": True}}, "'stream' is not allowed, because answers are read whole"),
        ({"body": {"user": "${USER}"}}, r"\$\{...\} is not expanded here"),
        ({"body": {"a": float("nan")}}, "something that JSON has not"),
        ({"body": {"response_format": {}}, "constraint_style": "json-schema"}, "Retort sets 'response_format' itself"),
        ({"headers": {"x-api-key": "literal-secret"}}, r"'x-api-key' must be read from the environment, as \$\{NAME\}"),
        ({"headers": {"Content-Type": "text/plain"}}, "Retort sets 'Content-Type' itself"),
        ({"headers": {"a b": "c"}}, "'a b' is no name of an HTTP header"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "a header is given twice"),
        ({"headers": {"Api-Key": "${K}"}, "api_key": "${K}", "api_key_header": "api-key"}, "is given by api_key"),
        ({"api_key_header": "api key"}, "no name of a header"),
        ({"url": "http://a/v1?key=literal-secret"}, r"the value of 'key' must be read from the environment"),
    ],
)
def test_what_may_not_be_given_is_refused_and_no_secret_shown(fields: dict[str, Any], words: str) -> None:
    teacher = {"kind": "endpoint", "url": "http://a/v1", "model": "m", **fields}
    override = f"teacher={json.dumps(teacher)}".replace("NaN", ".nan")
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(EXAMPLE, [override])
    assert "literal-secret" not in str(caught.value)


def test_the_body_is_part_of_the_identity_and_nothing_else_is() -> None:
    plain = config("http://a/v1")
    same = {
        "headers": {"X-Title": "night"},
        "token_limit_name": "max_completion_tokens",
        "seed_name": None,
        "reasoning_tokens": 9,
        "samples_per_request": 1,
        "row_wait_seconds": 5,
        "api_key_header": "api-key",
    }
    assert teacher_identity(plain, None) == {"kind": "endpoint", "model": "dummy", "url": "http://a/v1"}
    assert teacher_identity(config("http://a/v1", **same), None) == teacher_identity(plain, None)
    assert teacher_identity(config("http://a/v1", body={"top_k": 1}), None) != teacher_identity(plain, None)
    assert plain.model_dump().keys() == EndpointConfig.model_validate(plain.model_dump()).model_dump().keys()
    assert not same.keys() & plain.model_dump().keys(), "an older worker can still read it"


def test_a_temperature_that_is_left_out_is_another_key_and_only_for_endpoints() -> None:
    problem = problem_for(ClassificationConfig(kind="classification", labels=["food", "drink"]))
    keys = []
    for temperature in (0.0, None):
        builder = request_builder(problem, config("http://a/v1", sampling={"sampling_temperature": temperature}), [])
        keys.append(next(builder.keys([Pending(0, "u0", "a")], 0))["key"])
        assert builder.may_retry(Pending(0, "u0", "a", num_tries=1))
    assert keys[0] != keys[1]
    with pytest.raises(ValueError, match="may be null for kind: endpoint only"):
        VllmConfig.model_validate({"kind": "vllm", "model": "m", "sampling": {"sampling_temperature": None}})


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            {"error": {"message": "Unsupported parameter", "param": "max_tokens", "code": "unsupported_parameter"}},
            "refuses the field 'max_tokens' .*; set teacher.token_limit_name: max_completion_tokens$",
        ),
        (
            {"error": {"message": "Only 1 is supported", "param": "temperature", "code": "unsupported_value"}},
            "set teacher.sampling.sampling_temperature: null",
        ),
        (
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "set teacher.seed_name: null",
        ),
        (
            {"error": {"message": "no", "param": "safe_prompt", "code": "unknown_parameter"}},
            "take 'safe_prompt' out of teacher.body",
        ),
    ],
)
def test_a_refused_field_ends_the_run_with_what_to_set(
    endpoint_server: EndpointServer, error: dict[str, Any], advice: str
) -> None:
    endpoint_server.fail(endpoint_server.status(422 if "detail" in error else 400, json.dumps(error)))
    with pytest.raises(ConfigError, match=advice):
        ask(endpoint_server, requests(5), concurrency=1, body={"safe_prompt": True})
    assert len(endpoint_server.bodies) == 1


def test_a_refused_field_of_the_row_is_the_row_s(endpoint_server: EndpointServer) -> None:
    error = {"error": {"message": "too long", "param": "messages", "code": "unsupported_value"}}
    endpoint_server.fail(endpoint_server.status(400, json.dumps(error)), item="row 00001")
    outcomes = ask(endpoint_server, requests(3))
    assert sum(isinstance(outcome, Rejection) for outcome in outcomes) == 1


def test_what_the_documents_say_of_each_vendor_is_a_config() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|") and "`url: " in line]
    assert len(rows) == 9
    for row in rows:
        fields = [code for code in re.findall(r"`([^`]+)`", row) if ": " in code]
        teacher = yaml.safe_load("\n".join(fields))
        EndpointConfig.model_validate({"kind": "endpoint", "model": "m", **teacher})
    (example,) = re.findall(r"```yaml\n(teacher:\n  kind: endpoint\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert load_config(EXAMPLE, [f"teacher={json.dumps(yaml.safe_load(example)['teacher'])}"])


# Headers and addresses


def test_headers_come_from_the_config_and_their_secrets_go_nowhere(
    endpoint_server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_TEST_KEY", "key-of-azure")
    monkeypatch.setenv("RETORT_TEST_PROXY", "secret-of-proxy")
    teacher = config(
        endpoint_server,
        api_key="${RETORT_TEST_KEY}",
        api_key_header="api-key",
        headers={"X-Proxy": "Basic ${RETORT_TEST_PROXY}", "OpenAI-Organization": "org-1"},
    )
    endpoint_server.fail(endpoint_server.error(400, "no: secret-of-proxy, key-of-azure, org-1"), times=1)
    with open_endpoint(teacher) as client:
        (outcome,) = client.ask(iter(requests(1)))
    sent = endpoint_server.headers[0]
    assert (sent["api-key"], sent["X-Proxy"]) == ("key-of-azure", "Basic secret-of-proxy")
    assert sent["OpenAI-Organization"] == "org-1"
    assert "Authorization" not in sent
    assert isinstance(outcome, Rejection)
    assert "no: ***, ***, org-1" in outcome.detail
    assert not re.search("secret-of|key-of", repr(outcome) + repr(teacher))


def test_a_header_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = config("http://127.0.0.1:9/v1", headers={"X-Proxy": "${RETORT_TEST_PROXY}"})
    monkeypatch.delenv("RETORT_TEST_PROXY", raising=False)
    with pytest.raises(ConfigError, match="RETORT_TEST_PROXY, which is not set"), open_endpoint(teacher):
        pass
    monkeypatch.setenv("RETORT_TEST_PROXY", "a\nb")
    with (
        pytest.raises(ConfigError, match=r"headers.X-Proxy: '\$\{RETORT_TEST_PROXY\}' is empty"),
        open_endpoint(teacher),
    ):
        pass


def test_the_query_of_an_address_is_kept(endpoint_server: EndpointServer) -> None:
    root = endpoint_server.url.removesuffix("/v1")
    url = f"{root}/openai/deployments/gpt%20large/?api-version=2024-10-21"
    all_answered_once(endpoint_server, ask(url, requests(2)), 2)
    assert set(endpoint_server.paths) == {"/openai/deployments/gpt%20large/chat/completions?api-version=2024-10-21"}


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_on_the_same_host_is_followed(endpoint_server: EndpointServer, status: int) -> None:
    there = endpoint_server.status(status, Location="/there/chat/completions")
    endpoint_server.fail(there, times=1)
    ask(endpoint_server, requests(3), concurrency=1)
    assert endpoint_server.answered.total() == 3
    later = "/there/chat/completions" if status == 308 else "/v1/chat/completions"
    assert endpoint_server.paths == ["/v1/chat/completions", "/there/chat/completions", later, later]


@pytest.mark.parametrize(
    ("status", "location", "words"),
    [
        (
            307,
            "http://localhost:1/v1/chat/completions?key=a",
            r"redirects to http://localhost:1/v1/chat/completions \(HT",
        ),
        (308, "http://127.0.0.1:1/v1/chat/completions", "another host or port"),
        (
            301,
            "/v2/chat/completions",
            r"redirects to http://127.0.0.1:\d+/v2/chat/completions \(HTTP 301\), where a req",
        ),
        (302, "/login", "would arrive without its text"),
        (307, "http://[", "redirects to what is no address"),
        (307, "/v1/chat/completions", "redirects more than 3 times in a row"),
    ],
)
def test_other_redirects_are_refused_for_the_whole_run(
    endpoint_server: EndpointServer, status: int, location: str, words: str
) -> None:
    with open_endpoint(config(endpoint_server, concurrency=1)) as client:
        endpoint_server.fail(endpoint_server.status(status, Location=location))
        with pytest.raises(ConfigError, match=words):
            list(client.ask(iter(requests(30))))
        assert len(endpoint_server.bodies) <= 4
        endpoint_server.heal()
        texts(list(client.ask(iter(requests(1)))))
        endpoint_server.fail(endpoint_server.status(status, Location=location))
        with pytest.raises(TeacherUnavailable, match=words):
            list(client.ask(iter(requests(30))))


@pytest.mark.parametrize("status", [401, 405, 410, 415, 501, 505, 204])
def test_what_is_no_row_s_fault_ends_the_run_at_any_time(endpoint_server: EndpointServer, status: int) -> None:
    with open_endpoint(config(endpoint_server, concurrency=1)) as client:
        texts(list(client.ask(iter(requests(1)))))
        endpoint_server.fail(endpoint_server.error(status, "no more"))
        with pytest.raises((ConfigError, TeacherUnavailable), match=f"HTTP {status}"):
            list(client.ask(iter(requests(30))))
    assert len(endpoint_server.bodies) == 2


def test_403_amid_completions_is_the_row_s_fault_and_several_in_a_row_the_key_s(
    endpoint_server: EndpointServer,
) -> None:
    with open_endpoint(config(endpoint_server, concurrency=1)) as client:
        endpoint_server.fail(endpoint_server.status(403, "<h1>Blocked by the firewall</h1>"), item="row 00003")
        outcomes = list(client.ask(iter(requests(9))))
        (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
        assert (refusal.reason, refusal.key) == ("http-403", requests(4)[3].key)
        endpoint_server.fail(endpoint_server.error(403, "revoked"))
        with pytest.raises(ConfigError, match="HTTP 403: revoked"):
            list(client.ask(iter(requests(30))))
    assert len(endpoint_server.bodies) == 9 + 5


def test_a_row_that_is_flagged_is_the_row_s_fault(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(403, "Your input was flagged"), item="row 00001")
    outcomes = ask(endpoint_server, requests(3))
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Rejection)] == ["http-403"]


def test_a_key_that_is_refused_with_400_in_a_list(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.status(400, '[{"error": {"code": 400, "message": "API key not valid."}}]'))
    with pytest.raises(ConfigError, match=r"refuses a request without a key \(HTTP 400: API key not valid.\)"):
        ask(endpoint_server, requests(1))


# Thoughts


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_kept_apart_and_billed(endpoint_server: EndpointServer, field: str) -> None:
    endpoint_server.thoughts = {field: "food or drink?"}
    for usage, billed in (
        ({"completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 40}, "total_tokens": 150}, 50),
        ({"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 40}, "total_tokens": 150}, 50),
        ({"completion_tokens": 10}, 10),
    ):
        endpoint_server.usage = {"prompt_tokens": 100, **usage}
        (outcome,) = ask(endpoint_server, requests(1))
        assert isinstance(outcome, Completion)
        assert (outcome.text, outcome.prompt_tokens, outcome.completion_tokens) == ("food", 100, billed)


@pytest.mark.parametrize(("finish_reason", "reason"), [("length", "cut-short"), ("stop", "only-thoughts")])
def test_a_completion_that_is_only_thought_is_set_aside_as_such(
    endpoint_server: EndpointServer, finish_reason: str, reason: str
) -> None:
    endpoint_server.reply = lambda body: None
    endpoint_server.thoughts, endpoint_server.finish_reason = {"reasoning_content": "food\n"}, finish_reason
    (outcome,) = ask(endpoint_server, requests(1))
    assert isinstance(outcome, Completion)
    problem = problem_for(ClassificationConfig(kind="classification", labels=["food", "drink"]))
    found = parse_completion(problem, "apple", outcome.text, outcome.finish_reason).outcome
    assert not isinstance(found, str)
    assert (found.reason, found.raw) == (reason, "<think>food\n")


@pytest.mark.parametrize("finish_reason", ["error", "insufficient_system_resource"])
def test_a_completion_that_was_broken_off_is_asked_again(endpoint_server: EndpointServer, finish_reason: str) -> None:
    endpoint_server.finish_reason = finish_reason

    def heal(body: Any) -> str:
        endpoint_server.finish_reason = "stop" if len(endpoint_server.bodies) > 2 else finish_reason
        return "food"

    endpoint_server.reply = heal
    assert texts(ask(endpoint_server, requests(1))) == ["food"]
    assert len(endpoint_server.bodies) == 3
    problem = problem_for(ClassificationConfig(kind="classification", labels=["food", "drink"]))
    found = parse_completion(problem, "apple", "food", finish_reason).outcome
    assert not isinstance(found, str), "neither is one that is recorded a label"
    assert (found.reason, found.raw) == ("interrupted", "food")


def test_an_error_with_status_200_is_shown(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.status(200, '{"error": {"message": "Provider is overloaded", "code": 502}}'))
    (outcome,) = ask(endpoint_server, requests(1), retries=1)
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, "Provider is overloaded" in outcome.detail) == ("bad-response", True)


# Constraints of free text


def text_problem(**fields: Any) -> Problem:
    return problem_for(TextConfig.model_validate({"kind": "text", **fields}))


def test_free_text_is_held_to_its_schema_or_pattern() -> None:
    schema, pattern = text_problem(json_schema=ONE).constraint("a"), text_problem(pattern=r"\d+").constraint("a")
    assert constraint_settings(schema, "vllm") == {"structured_outputs": {"json": ONE}}
    assert constraint_settings(pattern, "vllm") == {"structured_outputs": {"regex": r"\d+"}}
    assert constraint_settings(schema, "json-schema")["response_format"]["json_schema"] == {
        "name": "label",
        "strict": True,
        "schema": ONE,
    }
    assert wrapping(schema, "json-schema") is None, "a schema of an object is sent as it is"
    wrapped = constraint_settings(pattern, "json-schema")["response_format"]["json_schema"]["schema"]
    assert wrapped["properties"] == {"label": {"type": "string", "pattern": r"^(?:\d+)$"}}
    assert constraint_settings(schema, "none") == {}
    assert text_problem().constraint("a") is None
    assert text_problem(pattern="(?=a)a").constraint("a") is None, "decoders cannot look ahead"


def test_a_schema_that_leaves_fields_open_does_not_claim_to_be_strict() -> None:
    for loose in ({**ONE, "required": []}, {**ONE, "additionalProperties": True}, {"type": "object"}):
        problem = text_problem(json_schema=loose)
        form = constraint_settings(problem.constraint("a"), "json-schema")["response_format"]["json_schema"]
        assert (form["strict"], form["schema"]) == (False, loose)


def test_a_schema_of_no_object_is_wrapped_with_its_definitions(endpoint_server: EndpointServer) -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/one"}, "$defs": {"one": ONE}}
    constraint = text_problem(json_schema=schema).constraint("a")
    endpoint_server.reply = lambda body: '{"label": [{"n": 1}]}'
    assert texts(ask(endpoint_server, requests(1, constraint=constraint), constraint_style="json-schema")) == [
        '[{"n": 1}]'
    ]
    sent = endpoint_server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert sent["properties"]["label"] == {"type": "array", "items": {"$ref": "#/$defs/one"}}
    assert sent["$defs"] == {"one": ONE}
    inner = Constraint(json_schema={"type": "array", "items": {"$ref": "#"}})
    with pytest.raises(ConfigError, match=r"\$ref '#' leads nowhere"):
        constraint_settings(inner, "json-schema")


def test_a_json_text_stays_json_when_it_is_unwrapped() -> None:
    constraint = Constraint(json_schema={"type": "string"})
    assert unwrap_label('{"label": "é"}', constraint) == '"é"'
    assert unwrap_label('{"label": "a", "b": 1}', constraint) == '{"label": "a", "b": 1}'
    own = Constraint(json_schema={"type": "object", "properties": {"label": {"type": "string"}}})
    assert wrapping(own, "json-schema") is None, "a field of this name of its own is no wrapping"


def test_a_pattern_that_is_sent_is_part_of_the_key_and_no_other() -> None:
    def key(teacher: LlmTeacherConfig, **fields: Any) -> bytes:
        builder = request_builder(text_problem(**fields), teacher, [Example("l0", "b", "1")])
        found: bytes = next(builder.keys([Pending(0, "u0", "a")], 0))["key"]
        return found

    local = VllmConfig.model_validate({"kind": "vllm", "model": "m"})
    assert len({key(local), key(local, pattern="[0-9]"), key(local, pattern=r"\d")}) == 3
    free = VllmConfig.model_validate({"kind": "vllm", "model": "m", "constrained": False})
    for teacher in (config("http://a/v1"), free):
        assert key(teacher) == key(teacher, pattern="[0-9]"), "nothing is sent, as before"


def test_a_doctor_can_say_what_a_teacher_is_held_to() -> None:
    classes = problem_for(ClassificationConfig(kind="classification", labels=["food", "drink"]))
    slots = problem_for(load_config(EXAMPLE).problem)
    schema, pattern = text_problem(json_schema=ONE), text_problem(pattern="[0-9]")
    problems = (classes, slots, schema, pattern, text_problem())
    assert [held_to(problem, config("http://a/v1", constraint_style="vllm")) for problem in problems] == [
        "held to the classes",
        "held to a grammar",
        "held to problem.json_schema",
        "held to problem.pattern",
        "not constrained",
    ]
    assert {held_to(problem, config("http://a/v1")) for problem in problems} == {"not constrained"}
    assert held_to(slots, config("http://a/v1", constraint_style="json-schema")) == "not constrained"
    when_needed = config("http://a/v1", constraint_style="vllm", constrained="when-needed")
    assert held_to(slots, when_needed) == "held to a grammar where needed"


def test_constrained_is_refused_where_nothing_constrains() -> None:
    schema, nothing = text_problem(json_schema=ONE), text_problem()
    silent, said = {"kind": "endpoint", "url": "http://a/v1", "model": "m"}, {"constrained": True}
    for problem in (schema, nothing):
        check_constrained(problem, EndpointConfig.model_validate(silent))
    for problem, fields, words in (
        (nothing, {"constraint_style": "vllm"}, "give problem.json_schema"),
        (schema, {}, "constraint_style: none cannot express"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_constrained(problem, EndpointConfig.model_validate({**silent, **said, **fields}))
    check_constrained(schema, EndpointConfig.model_validate({**silent, **said, "constraint_style": "json-schema"}))
    with pytest.raises(ConfigError, match=r"teacher\.constrained = when-needed: the problem has nothing"):
        check_constrained(nothing, EndpointConfig.model_validate({**silent, "constrained": "when-needed"}))
    local = TransformersConfig.model_validate({"kind": "transformers", "model": "m", **said})
    with pytest.raises(ConfigError, match="take kind: vllm or endpoint"):
        check_constrained(schema, local)
