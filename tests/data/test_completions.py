"""Completions: a bad line does not stop the reading, a damaged file does."""

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.data.answers import NoAnswer, answer_of
from retort.data.completions import BadLine, read_completions
from retort.errors import DataError
from retort.records.base import RecordedCompletion


def answer(custom_id: str, **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def choice(text: object, finish_reason: str = "stop") -> list[object]:
    return [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]


GOOD = answer("1", choices=choice("hello"), usage={"prompt_tokens": 5, "completion_tokens": 2})
BAD: list[tuple[str, str, str | None]] = [
    ("not json", "not-json", None),
    ("[1]", "not-json", None),
    (json.dumps({"response": {}}), "no-custom-id", None),
    (json.dumps({"custom_id": 5}), "no-custom-id", None),
    (json.dumps({"custom_id": "a", "response": {"status_code": 429, "body": {}}}), "http-429", "a"),
    (json.dumps({"custom_id": "b", "response": None, "error": {"code": "batch_expired"}}), "error", "b"),
    (json.dumps({"custom_id": "c", "response": None}), "no-choices", "c"),
    (json.dumps(answer("d", choices=[])), "no-choices", "d"),
    (json.dumps(answer("e", choices=choice(None))), "no-choices", "e"),
    (json.dumps(answer("f", choices="x")), "no-choices", "f"),
    (json.dumps({"custom_id": "g", "response": {"body": None}}), "no-choices", "g"),
]


def test_bad_lines_do_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text("\n\n".join([raw for raw, _, _ in BAD] + [json.dumps(GOOD)]))
    *bad, good = read_completions(str(path))
    assert good == RecordedCompletion("1", "hello", "stop", 5, 2)
    assert all(isinstance(line, BadLine) for line in bad)
    assert [(line.raw, line.reason, line.example_id) for line in bad if isinstance(line, BadLine)] == BAD
    assert isinstance(bad[1], BadLine)
    assert (bad[1].place, bad[1].detail) == (f"{path}, line 3", f"{path}, line 3: not a JSON object")


def test_cut_short_empty_and_plain_completions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl.gz"
    rows = [
        answer("1", choices=choice("hel", "length")),
        answer("2", choices=choice("")),
        answer("3", choices=[{"text": "x"}]),
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert list(read_completions(str(path))) == [
        RecordedCompletion("1", "hel", "length"),
        RecordedCompletion("2", "", "stop"),
        RecordedCompletion("3", "x"),
    ]


def test_bytes_that_are_not_utf8_cost_one_line(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_bytes(b'{"custom_id": "\xe9\n' + json.dumps(GOOD).encode())
    bad, good = read_completions(str(path))
    assert isinstance(bad, BadLine)
    assert bad.reason == "not-json"
    assert isinstance(good, RecordedCompletion)


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        list(read_completions(str(tmp_path / "none.jsonl")))
    path = tmp_path / "completions.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode() * 100)[:-20])
    with pytest.raises(DataError, match="cut in the middle"):
        list(read_completions(str(path)))


def test_a_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text('{"custom_id": "a", "custom_id": "b", "response": null}\n')
    (line,) = read_completions(str(path))
    assert isinstance(line, BadLine)
    assert (line.reason, line.detail) == ("key-twice", f"{path}, line 1: 'custom_id' is written twice")


OPENAI = {"choices": [{"message": {"content": "bad"}, "finish_reason": "stop"}]}
RESPONSE = {
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "bad", "annotations": []}],
        },
    ],
    "usage": {"input_tokens": 5, "output_tokens": 2},
}
CLAUDE = {
    "type": "message",
    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "ba"}, {"type": "text", "text": "d"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 2, "cache_read_input_tokens": 3, "output_tokens": 2},
}
GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "bad"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 1, "thoughtsTokenCount": 1},
}


def openai(body: object) -> dict[str, object]:
    return {"custom_id": "u", "response": {"status_code": 200, "body": body}, "error": None}


def claude(**changes: object) -> dict[str, object]:
    return {"custom_id": "u", "result": {"type": "succeeded", "message": {**CLAUDE, **changes}}}


def outcomes(path: Path, *rows: object) -> list[RecordedCompletion | BadLine]:
    path.write_text("\n".join(map(json.dumps, rows)))
    return list(read_completions(str(path)))


@pytest.mark.parametrize(
    "line",
    [
        openai({**OPENAI, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}),
        openai(RESPONSE),
        claude(),
        claude(type=None),
        {"recordId": "u", "modelInput": {}, "modelOutput": CLAUDE},
        {"key": "u", "response": GEMINI},
        {"key": "u", "status": "", "request": {}, "response": GEMINI},
        {"id": "1", "custom_id": "u", "response": {**openai(OPENAI), "body": {**OPENAI, "usage": {"prompt_tokens": 5,
            "completion_tokens": 2}}}},
        {"custom_id": "u", "response": {**OPENAI, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}},
    ],
)  # fmt: skip
def test_the_lines_of_every_vendor_say_the_same(tmp_path: Path, line: object) -> None:
    assert outcomes(tmp_path / "a.jsonl", line) == [RecordedCompletion("u", "bad", "stop", 5, 2)]


def test_content_in_parts(tmp_path: Path) -> None:
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    contents: list[tuple[object, str]] = [
        ([thoughts, {"type": "text", "text": "bad"}], "bad"),
        ([{"type": "text", "text": "ba"}, "d", {"type": "image_url"}, None, 5], "bad"),
        ([thoughts], ""),
        ([], ""),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": {"value": "x"}}], ""),
    ]
    lines = [answer(str(n), choices=choice(content)) for n, (content, _) in enumerate(contents)]
    found = outcomes(tmp_path / "a.jsonl", *lines)
    assert [one.text if isinstance(one, RecordedCompletion) else one for one in found] == [text for _, text in contents]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (openai({"choices": choice("x", "model_length")}), "length"),
        (openai({"choices": choice("x", "content_filter")}), "content_filter"),
        (openai({"choices": choice("x", "tool_calls")}), "tool_calls"),
        (openai({"choices": [{"message": {"content": "x"}}]}), None),
        (openai({**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}), "length"),
        (openai({**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "content_filter"}}),
         "content_filter"),
        (claude(stop_reason="max_tokens"), "length"),
        (claude(stop_reason="stop_sequence"), "stop"),
        (claude(stop_reason="refusal"), "content_filter"),
        (claude(stop_reason="model_context_window_exceeded"), "length"),
        ({"key": "u", "response": {"candidates": [{"finishReason": "MAX_TOKENS"}]}}, "length"),
        ({"key": "u", "response": {"candidates": [{"finishReason": "SAFETY"}]}}, "content_filter"),
        ({"key": "u", "response": {"promptFeedback": {"blockReason": "OTHER"}}}, "content_filter"),
    ],
)  # fmt: skip
def test_reasons_for_the_end_have_one_name(tmp_path: Path, line: object, reason: str | None) -> None:
    (found,) = outcomes(tmp_path / "a.jsonl", line)
    assert isinstance(found, RecordedCompletion)
    assert found.finish_reason == reason


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ({"custom_id": "u", "result": {"type": "errored", "error": {"type": "invalid_request"}}}, "error", "invalid_"),
        ({"custom_id": "u", "result": {"type": "expired"}}, "error", "it is expired"),
        ({"custom_id": "u", "result": {"type": "canceled"}}, "error", "it is canceled"),
        ({"key": "u", "error": {"code": 500, "message": "x"}}, "error", "500"),
        ({"key": "u", "status": "Bad Request: x", "request": {}}, "error", "Bad Request"),
        (openai({"error": {"message": "overloaded"}}), "error", "overloaded"),
        (openai({**RESPONSE, "status": "failed"}), "error", "the response is failed"),
        (openai({"choices": [{"message": {"content": None, "refusal": "I'm sorry"}}]}), "refused", "I'm sorry"),
        (openai({**RESPONSE, "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}),
         "refused", "no"),
        ({"custom_id": "u", "method": "POST", "url": "/v1/chat/completions", "body": {}}, "a-request", "output file"),
        ({"custom_id": "u", "response": {"candidates": [{}]}}, "no-choices", "no text"),
        ({"custom_id": "u", "text": "bad"}, "no-choices", "no text"),
    ],
)  # fmt: skip
def test_what_failed_is_said(tmp_path: Path, line: object, reason: str, detail: str) -> None:
    (found,) = outcomes(tmp_path / "a.jsonl", line)
    assert isinstance(found, BadLine)
    assert (found.reason, found.example_id) == (reason, "u")
    assert detail in found.detail


NAMES = st.sampled_from(
    ["response", "result", "body", "message", "modelOutput", "output", "choices", "candidates", "content", "parts",
    "text", "type", "thought", "status", "status_code", "error", "usage", "usageMetadata", "promptFeedback",
    "blockReason", "finish_reason", "stop_reason", "refusal", "method", "url"]
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, json_values, max_size=5))
def test_any_line_has_an_answer_or_a_reason(line: dict[str, object]) -> None:
    with contextlib.suppress(NoAnswer):
        found = answer_of(line)
        assert isinstance(found.text, str)
        assert min(found.prompt_tokens, found.completion_tokens) >= 0


def test_halves_of_surrogate_pairs_and_odd_counts_do_not_survive(tmp_path: Path) -> None:
    """JSON can express both; the tables that completions and failures are kept in cannot."""
    path = tmp_path / "completions.jsonl"
    odd = answer("\ud83d", choices=choice("hell\ud83d"), usage={"prompt_tokens": -5, "completion_tokens": "2"})
    failed = {"custom_id": "2", "response": None, "error": {"message": "\udc00"}}
    path.write_text("\n".join(map(json.dumps, (odd, failed))))
    first, second = read_completions(str(path))
    assert first == RecordedCompletion("?", "hell?", "stop", 0, 0)
    assert isinstance(second, BadLine)
    second.detail.encode()


CALL = '{"tool_calls":[{"arguments":{"city":"Rome"},"name":"weather"}]}'
BESIDE = CALL.replace("{", '{"content":"I look.",', 1)
OPENAI = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


@pytest.mark.parametrize(
    "content", [None, "", "I look.", "<think>Rome?</think>I look.", [{"type": "text", "text": "I look."}]]
)
@pytest.mark.parametrize("reason", ["tool_calls", "stop", None])
def test_calls_of_tools_are_kept_with_the_words_beside_them(content: object, reason: str | None) -> None:
    message = {"role": "assistant", "content": content, "tool_calls": [OPENAI], "refusal": None}
    answered = answer_of(answer("1", choices=[{"message": message, "finish_reason": reason}]))
    assert answered[:2] == (BESIDE if content else CALL, "tool_calls")


@pytest.mark.parametrize(
    "line",
    [
        {"result": {"type": "succeeded", "message": {"stop_reason": "tool_use", "content": [
            {"type": "thinking", "thinking": "Rome?"}, {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Rome"}}]}}},
        {"response": {"candidates": [{"finishReason": "STOP", "content": {"parts": [
            {"text": "I look."}, {"functionCall": {"name": "weather", "args": {"city": "Rome"}}}]}}]}},
        {"response": {"body": {"status": "completed", "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Rome"}'}]}}},
    ],
    ids=["anthropic", "gemini", "openai-responses"],
)  # fmt: skip
def test_calls_of_other_vendors_are_the_same(line: dict[str, object]) -> None:
    assert answer_of(line)[:2] == (BESIDE, "tool_calls")


def test_a_call_that_was_cut_is_no_call_that_ended() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [OPENAI]}
    cut = answer_of(answer("1", choices=[{"message": message, "finish_reason": "length"}]))
    assert cut[:2] == (CALL, "length")
