"""Conversations in all the forms that people have, and the assistant's turn: a text, or calls compared by content."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import ChatConfig, ColumnsConfig, Metric
from retort.errors import ConfigError, DataError
from retort.metrics.bootstrap import value_on
from retort.metrics.scores import statistics_of, value_of
from retort.problems.chat import Chat, conversation_text
from retort.problems.turns import Call, Message, alternating, conversation, plain, said, shortened, turns_of
from retort.records.base import ParseFailure
from retort.teachers.salvage import parse_completion

COLUMNS = ColumnsConfig()
WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
FREE = Chat(ChatConfig(kind="chat"))
TOOLS = Chat(ChatConfig(kind="chat", tools=[{"type": "function", "function": WEATHER}, {"name": "now"}]))
ROME = '{"tool_calls":[{"arguments":{"city":"Rome"},"name":"weather"}]}'
CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("given_", "turns"),
    [
        ("hello", [("user", "hello")]),
        ("[urgent] hello", [("user", "[urgent] hello")]),
        ([turn("user", "hello")], [("user", "hello")]),
        ('[{"role": "user", "content": "hello"}]', [("user", "hello")]),
        ([{"from": "human", "value": "hello"}], [("user", "hello")]),
        ([turn("developer", "be brief"), turn("user", "hi")], [("system", "be brief"), ("user", "hi")]),
        ([turn("user", [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}])], [("user", "hello")]),
        ([turn("user", "hi", name=None, tool_calls=None)], [("user", "hi")]),
        (
            [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (np.array([turn("user", "hello")]).tolist(), [("user", "hello")]),
    ],
)
def test_conversations(given_: object, turns: list[tuple[str, str]]) -> None:
    found = conversation(given_)
    assert [(one.role, one.content) for one in found] == turns
    assert turns_of(conversation_text(given_)) == found


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ([], "no conversation"),
        (None, "no conversation"),
        (3, "no conversation"),
        ({"role": "user", "content": "x"}, "no conversation"),
        (b"x", "no conversation"),
        ('[{"role": "user"', "is not JSON"),
        (["hello"], "turn 1 is 'hello'"),
        ([turn("robot", "x")], "its role is 'robot'; allowed: system, user, assistant, tool"),
        ([{"content": "x"}], "its role is None"),
        ([turn("user", "")], "the user says nothing"),
        ([turn("user", 3)], "its content is 3"),
        ([turn("user", [{"type": "image_url", "image_url": "x"}])], "a part that is no text"),
        ([turn("user", "x", tool_calls=CALLS)], "only an assistant calls tools"),
        ([turn("user", "a"), turn("assistant", "b")], "the last turn is the assistant's"),
        ([turn("user", "a"), turn("system", "b"), turn("user", "c")], "not the first one"),
        ([turn("user", "a"), turn("assistant", None), turn("user", "b")], "turn 2: the assistant says nothing"),
        ([turn("assistant", None, tool_calls=[{"name": ""}]), turn("tool", "")], "no call of a tool"),
        ([turn("assistant", None, tool_calls=[{"name": "a", "arguments": "{"}]), turn("tool", "")], "is not JSON"),
        ([turn("assistant", None, tool_calls=[{"name": "a", "arguments": [1]}]), turn("tool", "")], "no object"),
        ([turn("user", "\ud83d")], "surrogate"),
    ],
)
def test_what_is_no_conversation(given_: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        conversation(given_)


@pytest.mark.parametrize(
    "label",
    [
        turn("assistant", None, tool_calls=CALLS),
        turn("assistant", "", tool_calls=[{"name": "weather", "arguments": {"city": "Rome"}}]),
        {"tool_calls": CALLS},
        CALLS,
        [{"name": "weather", "parameters": {"city": "Rome"}}],
        [{"name": "weather", "arguments": {"city": "Rome", "day": None}, "function": None, "id": None}],
        json.dumps(turn("assistant", None, tool_calls=CALLS)),
        json.dumps(CALLS),
        ROME,
    ],
)
def test_gold_calls_in_all_forms_are_one_label(label: object) -> None:
    assert TOOLS.gold({"label": label}, COLUMNS) == ROME
    assert FREE.gold({"label": label}, COLUMNS) == ROME


def test_gold_texts() -> None:
    assert FREE.gold({"label": 3}, COLUMNS) == FREE.gold({"label": "3"}, COLUMNS) == "3"
    assert FREE.gold({"label": " Hello. "}, COLUMNS) == "Hello."
    assert FREE.gold({"label": turn("assistant", "Hello.")}, COLUMNS) == "Hello."
    assert FREE.gold({"label": None}, COLUMNS) is None
    assert FREE.gold({"label": " "}, COLUMNS) is None
    assert FREE.gold({"label": '{"a": 1}'}, COLUMNS) == '{"a": 1}'


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (turn("user", "x"), "a turn of the user"),
        (turn("assistant", None), "says nothing"),
        ([{"name": "fly", "arguments": {}}], "no tool 'fly'; allowed: weather, now"),
        ([{"name": "weather", "arguments": {}}], "'city' is a required property"),
    ],
)
def test_gold_outside(label: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        TOOLS.gold({"label": label}, COLUMNS)


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("It is sunny.\n", "It is sunny."),
        (ROME, ROME),
        (f"```json\n{ROME}\n```", ROME),
        ('{"name": "weather", "arguments": {"city": "Rome"}}', ROME),
        ('[{"name": "weather", "arguments": {"city": "Rome"}}]', ROME),
        ('{"tool_calls": [{"name": "now"}]}', '{"tool_calls":[{"arguments":{},"name":"now"}]}'),
        ('{"content": "Let me see.", "tool_calls": [{"name": "now"}]}',
         '{"content":"Let me see.","tool_calls":[{"arguments":{},"name":"now"}]}'),
        ('{"a": 1}', '{"a": 1}'),
        ("[1, 2]", "[1, 2]"),
        ("3", "3"),
    ],
)  # fmt: skip
def test_completions(completion: str, label: str) -> None:
    assert TOOLS.parse("", completion) == label
    assert TOOLS.parse("", label) == label


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "empty"),
        ('{"tool_calls": [{"name": "fly"}]}', "unknown-tool"),
        ('{"tool_calls": [{"name": "weather", "arguments": {"city": 3}}]}', "arguments"),
        ('{"tool_calls": "weather"}', "bad-call"),
        ('{"tool_calls": [{}]}', "bad-call"),
        ('{"tool_calls": [{"name": "weather", "arguments": "{"}]}', "bad-call"),
        ('{"tool_calls": 3}', "bad-call"),
        ('{"tool_calls": []}', "bad-call"),
        ('{"tool_calls": [{"name": "now", "arguments": {"x": 1e999}}]}', "bad-call"),
    ],
)
def test_what_is_set_aside(completion: str, reason: str) -> None:
    found = TOOLS.parse("", completion)
    assert isinstance(found, ParseFailure)
    assert (found.reason, found.raw) == (reason, completion)


@given(st.text(max_size=30))
def test_parsing_never_raises(completion: str) -> None:
    for problem in (FREE, TOOLS):
        label = problem.parse("", completion)
        assert isinstance(label, ParseFailure) or problem.parse("", label) == label


def test_calls_are_compared_by_content_and_in_any_order() -> None:
    one = TOOLS.parse("", '{"tool_calls": [{"name": "now"}, {"name": "weather", "arguments": {"city": "Rome"}}]}')
    other = TOOLS.parse("", '{"tool_calls": [{"arguments": {"city": "Rome"}, "name": "weather"}, {"name": "now"}]}')
    assert isinstance(one, str)
    assert isinstance(other, str)
    assert one != other
    assert TOOLS.matches(one, other)
    assert not TOOLS.matches(one, ROME)
    assert not TOOLS.matches(ROME, "It is sunny.")
    assert not TOOLS.matches(ROME, None)
    assert FREE.parse("", '[{"name": "a", "arguments": {"n": 1.0}}]') == FREE.parse(
        "", '[{"name": "a", "arguments": {"n": 1}}]'
    )


def test_field_f1_counts_names_and_arguments() -> None:
    def value(metric: Metric, gold: str, predicted: str | None) -> float:
        return value_on(statistics_of(TOOLS, metric, [gold], [predicted]), value_of(TOOLS, metric))

    paris = ROME.replace("Rome", "Paris")
    assert value("field_f1", ROME, ROME) == 1.0
    assert value("field_f1", ROME, paris) == 0.5
    assert value("field_f1", ROME, "no call") == 0.0
    assert value("field_f1", ROME, None) == 0.0
    assert value("field_f1", "text", "other text") == 1.0
    assert value("exact_match", ROME, ROME) == 1.0
    assert value("chrf", "It is sunny.", "It is sunny.") == pytest.approx(1.0)


def test_a_vendors_message_with_calls_is_read() -> None:
    assert said({"content": None, "tool_calls": CALLS}) == ROME
    assert said({"content": "hello"}) == "hello"
    assert said({"content": None}) is None
    broken = said({"content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{"}}]})
    found = TOOLS.parse("", broken or "")
    assert isinstance(found, ParseFailure)
    assert found.reason == "bad-call"


def test_turns_alternate_for_every_template() -> None:
    turns = [
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "", (Call("weather", {"city": "Rome"}),)),
        Message("tool", "sunny"),
        Message("user", "And?"),
    ]
    assert alternating(turns, "(New.)") == [
        ("user", "(New.)\n\nBe brief.\n\nWeather?"),
        ("assistant", ROME),
        ("user", "Result of the tool: sunny\n\nAnd?"),
    ]
    assert alternating([Message("assistant", "Hi!"), Message("user", "Hi.")])[0] == ("user", "(The assistant begins.)")
    assert plain(turns[:2]) == "System: Be brief.\nUser: Weather?"
    assert [len(kept) for kept in shortened(turns)] == [5, 4, 3, 2]
    assert all(kept[0].role == "system" for kept in shortened(turns))


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        ([{}], r"problem\.tools\.0: a tool needs a name"),
        ([{"name": "a"}, {"name": "a"}], "stands for two tools"),
        ([{"name": "a", "parameters": {"type": "thing"}}], r"problem\.tools\.0\.parameters.*is no JSON Schema"),
    ],
)
def test_what_is_no_tool(tools: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Chat(ChatConfig(kind="chat", tools=tools))


@pytest.mark.parametrize("nothing", [None, math.nan, "", " \n", b" "])
def test_what_is_no_gold_turn(nothing: object) -> None:
    assert FREE.gold({"label": nothing}, COLUMNS) is None


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (b"\xff", "UTF-8"),
        ("a\ud83d", "surrogate"),
        (math.inf, "a text or a number"),
        ({"tool_calls": 5}, "where a list is needed"),
        ({"tool_calls": "weather"}, "where a list is needed"),
        ([], "says nothing"),
        ([5], "no call of a tool"),
    ],
)
def test_gold_is_read_as_strictly_as_of_all_problems(label: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        FREE.gold({"label": label}, COLUMNS)


@pytest.mark.parametrize("problem", [FREE, TOOLS])
@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ('{"tool_calls": [{"name": "weather", "name": "now", "arguments": {"city": "Rome"}}]}', "key-twice"),
        ('[{"name": "weather", "arguments": {"city": "Rome", "city": "Bonn"}}]', "key-twice"),
        (ROME.replace('{"city":"Rome"}', json.dumps('{"city": "Rome", "city": "Bonn"}')), "bad-call"),
    ],
)
def test_a_call_with_a_key_twice_is_none_and_no_text(problem: Chat, completion: str, reason: str) -> None:
    failure = problem.parse("", completion)
    assert isinstance(failure, ParseFailure)
    assert failure.reason == reason
    assert "written twice" in failure.detail
    assert FREE.parse("", '{"a": 1, "a": 2}') == '{"a": 1, "a": 2}'  # some words


def test_what_looks_like_thoughts_in_an_argument_stays_there() -> None:
    call = ROME.replace("Rome", "</think>Rome")
    assert parse_completion(TOOLS, "", call, "tool_calls").outcome == call
