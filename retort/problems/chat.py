"""Chat: the text is a conversation, the label the assistant's next turn: a text, or calls of tools.

A label is the text itself, or canonical JSON, `{"tool_calls":[{"arguments":{...},"name":"..."}]}`, which is also what
teachers and students write. Calls are compared by content, and in any order.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from retort.config import ChatConfig, ColumnsConfig, Metric, TextConfig
from retort.errors import ConfigError, DataError
from retort.io.strict_json import KeyTwice, json_value
from retort.problems.base import Constraint, Floats, gold_text, ratio
from retort.problems.text import FreeText, json_leaves, json_validator
from retort.problems.turns import Call, Message, call, conversation, message, turns_of
from retort.records.base import Label, ParseFailure

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_FENCE = re.compile(r"\s*```\w*\n(.*?)```\s*", re.DOTALL)
_FORM = '{"tool_calls": [{"name": "...", "arguments": {...}}]}'


class Chat(FreeText):
    """Raises ConfigError for a tool without a name, named twice, or whose parameters are no JSON Schema."""

    def __init__(self, config: ChatConfig) -> None:
        super().__init__(TextConfig(kind="text"))
        self._tools = [_tool(given, at) for at, given in enumerate(config.tools)]
        self._parameters: dict[str, Validator] = {}
        for at, tool in enumerate(self._tools):
            if tool["name"] in self._parameters:
                raise ConfigError(f"problem.tools.{at}: the name '{tool['name']}' stands for two tools")
            field = f"problem.tools.{at}.parameters"
            self._parameters[tool["name"]] = json_validator(tool.get("parameters") or {}, field)

    @property
    def instruction(self) -> str:
        return "Continue each conversation with the assistant's next turn, and write nothing else.{schema}"

    @property
    def schema(self) -> str:
        """The tools, and how they are called."""
        if not self._tools:
            return ""
        tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self._tools)
        return f" To call tools, write JSON and nothing else: {_FORM}. The tools:\n{tools}"

    def turns(self, text: str) -> tuple[Message, ...]:
        """The conversation that a row's text holds."""
        return turns_of(text)

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. A text, an assistant's turn, or a list of calls; as objects or as JSON."""
        value = row.get(columns.label)
        if not isinstance(value, Mapping | list | tuple):
            text = gold_text(row, columns.label)
            if not text:
                return None
            found = self.parse("", text)
        else:
            turn = value if isinstance(value, Mapping) else {"tool_calls": value}
            said = message({"role": "assistant", **turn})
            if said.role != "assistant":
                raise DataError(f"the label is a turn of the {said.role}; needed: the assistant's")
            found = self._checked(said, said.text)
        if isinstance(found, ParseFailure):
            raise DataError(f"the label '{found.raw[:80]}' is not allowed: {found.detail[0].lower()}{found.detail[1:]}")
        return found

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. JSON of calls, also in a code fence, is calls; anything else is the text.

        Reason codes: `empty`, `bad-call`, `key-twice`, `unknown-tool`, `arguments`.
        """
        fenced = _FENCE.fullmatch(completion)
        written = fenced[1] if fenced else completion
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            value = None
        calls = value.get("tool_calls") if isinstance(value, dict) else value
        is_call = isinstance(value, list) and value and all(_looks_like_call(one) for one in value)
        if not is_call and not (isinstance(value, dict) and "tool_calls" in value):
            if isinstance(value, dict) and _looks_like_call(value) and self._tools:
                calls = [value]
            else:
                return super().parse(text, completion)
        try:
            json_value(written)
            content = value.get("content") if isinstance(value, dict) and "tool_calls" in value else None
            said = message({"role": "assistant", "content": content, "tool_calls": calls})
        except KeyTwice as error:
            return ParseFailure("key-twice", f"In its JSON, {error}.", completion)
        except (DataError, RecursionError) as error:
            return ParseFailure("bad-call", f"It is no call of a tool: {error}.", completion)
        return self._checked(said, completion)

    def _checked(self, said: Message, raw: str) -> Label | ParseFailure:
        """The label, if its calls are of known tools with arguments as their parameters say."""
        for one in said.calls if self._tools else ():
            if one.name not in self._parameters:
                known = ", ".join(self._parameters)
                return ParseFailure("unknown-tool", f"There is no tool '{one.name[:80]}'; allowed: {known}.", raw)
            worst = next(iter(self._parameters[one.name].iter_errors(one.arguments)), None)
            if worst is not None:
                detail = f"The arguments of '{one.name}' break its parameters: {worst.message[:200]}."
                return ParseFailure("arguments", detail, raw)
        return said.text if said.calls else super().parse("", said.content)

    def constraint(self, text: str) -> Constraint | None:
        return None

    def grammar(self, text: str) -> str | None:
        return None

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        """The same words around the same calls, these in any order."""
        if predicted is None:
            return False
        (words, calls), (said, called) = _parts(gold), _parts(predicted)
        return words == said and Counter(one.canonical for one in calls) == Counter(one.canonical for one in called)

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """As for free text; field_f1: number of fields of calls (in both, predicted, gold), the name and each
        argument."""
        if metric != "field_f1":
            return super().statistics(metric, gold, predicted)
        wanted, given = _fields(gold), _fields(predicted) if predicted is not None else Counter[str]()
        return np.array([(wanted & given).total(), given.total(), wanted.total()], dtype=np.float64)

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. field_f1 is 1 if neither side calls a tool."""
        if metric == "field_f1":
            return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2], empty=1.0)
        return super().value(metric, sums)

    def parts(self, label: Label) -> list[str]:
        words, calls = _parts(label)
        return [words, *(one.canonical for one in calls)]


def conversation_text(value: object) -> str:
    """A raw column as a row's text. Raises DataError."""
    from retort.problems.turns import as_text

    return as_text(conversation(value))


def _tool(given: Mapping[str, Any], at: int) -> dict[str, Any]:
    """A tool as OpenAI describes it, with or without `{"type": "function", "function": ...}` around it."""
    tool = given.get("function", given)
    name = tool.get("name") if isinstance(tool, Mapping) else None
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"problem.tools.{at}: a tool needs a name; allowed: name, description, parameters")
    return dict(tool)


def _looks_like_call(value: object) -> bool:
    inner = value.get("function") if isinstance(value, dict) and isinstance(value.get("function"), dict) else value
    return isinstance(inner, dict) and "name" in inner and ("arguments" in inner or "parameters" in inner)


def _parts(label: Label) -> tuple[str, list[Call]]:
    """The words and the calls of a label."""
    if label.startswith('{"') and '"tool_calls":[' in label:
        try:
            turn = json.loads(label)
            return turn.get("content", ""), [call(one) for one in turn["tool_calls"]]
        except (ValueError, LookupError, AttributeError, DataError):
            pass
    return label, []


def _fields(label: Label) -> Counter[str]:
    def fields() -> Iterator[str]:
        for one in _parts(label)[1]:
            yield one.name
            yield from (f"{one.name} {leaf}" for leaf in json_leaves(one.arguments) if one.arguments)

    return Counter(fields())
