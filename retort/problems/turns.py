"""Chat messages: a conversation as the text of a row, an assistant's turn as a label.

A row's text is the canonical JSON of its turns. Formats of messages are read that people have: OpenAI's (function calls
with their arguments as a JSON text, and ids, which are dropped), the shorter `{"name", "arguments"}`, content in parts
of type text, and Parquet's lists of structs, whose missing fields are null.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from retort.errors import DataError
from retort.io.strict_json import KeyTwice, json_value

ROLES = ("system", "user", "assistant", "tool")
_LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
TOOL_CALLS = "tool_calls"
"""The reason for the end of a completion that calls tools."""
_ROLE_NAMES = {"developer": "system", "human": "user", "gpt": "assistant", "model": "assistant", "function": "tool"}
"""Other names that data sets and vendors use."""


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]

    @property
    def canonical(self) -> str:
        """By which two calls are compared."""
        return to_json(self._asdict())


class Message(NamedTuple):
    """One turn."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()

    @property
    def text(self) -> str:
        """What was written: the content, or where there are calls, JSON."""
        if not self.calls:
            return self.content
        calls = [call._asdict() for call in self.calls]
        return to_json({**({"content": self.content} if self.content else {}), "tool_calls": calls})


def conversation(value: object) -> tuple[Message, ...]:
    """The turns of a raw column: a list of messages, JSON of one, or a text, which is then the user's only turn.

    Raises DataError with one sentence, without the row's place.
    """
    if isinstance(value, str):
        if not value.strip():
            raise DataError("the text is empty")
        if not _LIST_OF_OBJECTS.match(value):
            return (Message("user", _unicode(value)),)
        value = _decoded(value, "the conversation")
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        raise DataError(f"{value!r:.60} is no conversation; needed: a list of turns, {{role, content}} each")
    turns = tuple(message(turn, at) for at, turn in enumerate(value, 1))
    if turns[-1].role not in ("user", "tool"):
        raise DataError(f"the last turn is the {turns[-1].role}'s; the assistant answers a user or a tool")
    if any(turn.role == "system" for turn in turns[1:]):
        raise DataError("a system turn is not the first one")
    return turns


def message(value: object, number: int | None = None) -> Message:
    """One turn. `number` counts from 1 and is for errors. Raises DataError."""
    where = "the turn" if number is None else f"turn {number}"
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is {value!r:.60}, where an object with role and content is needed")
    given = value.get("role") or value.get("from")
    role = _ROLE_NAMES.get(str(given), str(given))
    if role not in ROLES:
        raise DataError(f"{where}: its role is {given!r:.40}; allowed: {', '.join(ROLES)}")
    content = _content(value.get("content", value.get("value")), where)
    called = value.get("tool_calls") or ()
    if not isinstance(called, list | tuple):
        raise DataError(f"{where}: its tool_calls are {called!r:.60}, where a list is needed")
    calls = tuple(call(one, where) for one in called)
    if calls and role != "assistant":
        raise DataError(f"{where}: only an assistant calls tools, not the {role}")
    if not content.strip() and not calls and role != "tool":
        raise DataError(f"{where}: the {role} says nothing")
    return Message(role, content, calls)


def call(value: object, where: str = "the turn") -> Call:
    """A call of a tool in any of the formats. Raises DataError."""
    inner = value.get("function") if isinstance(value, Mapping) and value.get("function") else value
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        raise DataError(f"{where}: {value!r:.60} is no call of a tool; needed: name and arguments")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = _decoded(arguments, f"{where}: the arguments of '{inner['name']:.40}'")
    if not isinstance(arguments or {}, Mapping):
        raise DataError(f"{where}: the arguments of '{inner['name']:.40}' are {arguments!r:.40}, no object")
    try:
        return Call(_unicode(inner["name"].strip()), _plain(dict(arguments or {})))
    except RecursionError:
        raise DataError(f"{where}: the arguments of '{inner['name']:.40}' are nested too deeply") from None


def said(answer: Mapping[str, Any]) -> str | None:
    """What a vendor's message says: its text, or where it calls tools, JSON. None if it is neither."""
    content, calls = answer.get("content"), answer.get("tool_calls")
    if not calls:
        return content if isinstance(content, str) else None
    try:
        return message({"role": "assistant", "content": content, "tool_calls": calls}).text
    except DataError:  # whoever reads it says what is wrong with it
        return json.dumps({"content": content, "tool_calls": calls}, ensure_ascii=False)


def words_beside_calls(answer: str) -> str:
    """The words in what `said` gives for a message that calls tools, empty if there are none; all of any other text."""
    try:
        turn = json.loads(answer)
    except (ValueError, RecursionError):
        return answer
    if not isinstance(turn, dict) or "tool_calls" not in turn:
        return answer
    content = turn.get("content")
    return content if isinstance(content, str) else ""


def ended_by(answer: object, finish_reason: str | None) -> str | None:
    """`tool_calls` for a vendor's message that calls tools and ended well, whatever the vendor says of it."""
    calls = isinstance(answer, Mapping) and answer.get("tool_calls")
    return TOOL_CALLS if calls and finish_reason in (None, "stop") else finish_reason


def as_text(turns: Sequence[Message]) -> str:
    """The canonical JSON of a conversation, which `turns_of` reads."""
    return to_json([_as_object(turn) for turn in turns])


def turns_of(text: str) -> tuple[Message, ...]:
    return tuple(message(turn) for turn in json.loads(text))


def _as_object(turn: Message) -> dict[str, Any]:
    calls = {"tool_calls": [one._asdict() for one in turn.calls]} if turn.calls else {}
    return {"role": turn.role, "content": turn.content, **calls}


def alternating(turns: Sequence[Message], opening: str = "") -> list[tuple[str, str]]:
    """(role, content) of turns that every chat template takes: user and assistant by turns, the user first and last.

    `opening` and the system's turn come before the user's first words; a tool's result is what the user says; turns of
    one role after another are joined.
    """
    spoken = [("user", opening)] if opening else []
    for turn in turns:
        content = f"Result of the tool: {turn.content}" if turn.role == "tool" else turn.text
        spoken.append(("assistant" if turn.role == "assistant" else "user", content))
    if spoken[0][0] == "assistant":
        spoken.insert(0, ("user", "(The assistant begins.)"))
    joined: list[tuple[str, str]] = []
    for role, content in spoken:
        if joined and joined[-1][0] == role:
            joined[-1] = role, f"{joined[-1][1]}\n\n{content}"
        else:
            joined.append((role, content))
    return joined


def plain(turns: Sequence[Message]) -> str:
    """The conversation as text, for models without a chat template: `User: ...`, one turn after another."""
    return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)


def shortened(turns: Sequence[Message]) -> list[list[Message]]:
    """The conversation, and its ever shorter ends: the oldest turns go first, and the system's turn stays."""
    first = 1 if turns[0].role == "system" else 0
    return [[*turns[:first], *turns[at:]] for at in range(first, len(turns))]


def to_json(value: object) -> str:
    """Canonical: keys sorted, no white space, all letters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _content(value: object, where: str) -> str:
    """A text, or parts of type text, which are joined."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [
            part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None for part in value
        ]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{where}: its content has a part that is no text, which nobody here reads")
        return _unicode("".join(str(part) for part in parts))
    if not isinstance(value, str):
        raise DataError(f"{where}: its content is {value!r:.60}, where a text is needed")
    return _unicode(value)


def _decoded(text: str, what: str) -> Any:
    try:
        return json_value(text, parse_constant=_refuse)
    except KeyTwice as error:
        raise DataError(f"in {what}, {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None


def _plain(value: Any) -> Any:
    """JSON with one way to write each number: 1.0 is 1. Fields that are null are left out, since Parquet writes null
    for those that only other rows have. Raises DataError for what JSON does not have."""
    if isinstance(value, Mapping):
        return {_unicode(str(key)): _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{value} is no number of JSON")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int):
        return value
    raise DataError(f"{value!r:.60} cannot be written as JSON")


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"it holds half of a surrogate pair ({text[error.start]!a})") from error
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
