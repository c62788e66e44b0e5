"""Which kind of problem the labels of a column make, and what its section of the YAML file must hold."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from retort.config.problems import MOST_NUMBERS
from retort.errors import DataError

MOST_CLASSES = 200
ROWS_PER_CLASS = 3
"""More distinct labels than a third of the rows are no classes, but texts."""
SEPARATORS = (",", ";", "|")
LEAST_SETS = 0.05
"""Share of the labels that hold a separator if they are sets of classes."""
MOST_STEPS = 20
"""More steps than this between the lowest and the highest fraction are no steps, but chance."""
MOST_NUMBERED_CLASSES = 21
SCORES = re.compile(r"(^|[_\W])(score|rating|stars?|marks?|grade|points|similarity|percent\w*)s?$", re.IGNORECASE)
"""Names of columns whose whole numbers are no names of classes."""
_TAG = re.compile(r"O|[BIESLUMW]-.+")


def kind_of(labels: Sequence[Any], column: str, *, is_chat: bool) -> str:
    """The `kind` of problem. `is_chat` says that the texts are conversations."""
    values = [decoded(label) for label in labels]

    def most(fits: Callable[[Any], object]) -> bool:
        return sum(bool(fits(value)) for value in values) > 0.9 * len(values)

    if is_chat or most(_is_turn):
        return "chat"
    if any(map(_are_spans, values)) and most(lambda value: value == [] or _are_spans(value)):
        return "entities"
    if most(lambda value: isinstance(value, list)):
        return "multi-label"
    if most(lambda value: isinstance(value, Mapping)):
        return "text"
    texts = [str(label).strip() for label in labels]
    if all(text.startswith("[IN:") for text in texts):
        return "slots"
    if all(text.startswith("(") and text.endswith(")") and text.count("(") == text.count(")") > 1 for text in texts):
        return "constituency"
    if numbers := numbers_of(labels):
        is_scale = SCORES.search(column) or any(number % 1 for number in numbers)
        return "regression" if is_scale or len(set(numbers)) > MOST_NUMBERED_CLASSES else "classification"
    if separator_of(texts):
        return "multi-label"
    distinct = len(set(texts))
    return "classification" if distinct <= MOST_CLASSES and len(texts) >= ROWS_PER_CLASS * distinct else "text"


def scale_of(labels: Sequence[Any], column: str) -> dict[str, Any]:
    """`low`, `high` and, if there are steps, `step` of labels that are numbers.

    Raises DataError if they are none, all the same, or more than a teacher can be held to.
    """
    numbers = numbers_of(labels)
    if numbers is None or len(set(numbers)) < 2:
        raise DataError(f"the labels in '{column}' are no two different numbers, which regression needs")
    low, high, is_whole = min(numbers), max(numbers), all(number % 1 == 0 for number in numbers)
    unit = Decimal(1).scaleb(min(int(number.normalize().as_tuple().exponent) for number in numbers))
    step = math.gcd(*(int((number - low) / unit) for number in numbers)) * unit
    if is_whole and high - low < MOST_NUMBERS:
        step = Decimal(1)  # of 1, 3 and 5, the marks between are steps too
    if (high - low) / step <= (MOST_NUMBERS - 1 if is_whole else MOST_STEPS):
        return {"low": _plain(low), "high": _plain(high), "step": _plain(step)}
    if high - low >= MOST_NUMBERS:
        raise DataError(
            f"the labels in '{column}' are numbers from {_plain(low)} to {_plain(high)}; at most {MOST_NUMBERS} "
            "different ones can be written, so divide them or take their logarithm"
        )
    return {"low": math.floor(low), "high": math.ceil(high)}


def separator_of(texts: Sequence[str]) -> str | None:
    """What separates the names of several classes, if anything does: names stand in several sets, and so are fewer
    than the sets."""
    for separator in SEPARATORS:
        sets = [[part.strip() for part in text.split(separator) if part.strip()] for text in texts]
        names = Counter(name for one in sets for name in one)
        several = sum(len(one) > 1 for one in sets)
        is_shared = len(names) <= len(set(texts)) and names.total() >= ROWS_PER_CLASS * len(names)
        has_words = not any(name.isdecimal() for name in names)
        if several >= LEAST_SETS * len(texts) and several and is_shared and has_words and len(names) <= MOST_CLASSES:
            return separator
    return None


def are_tags(value: object) -> bool:
    """Whether it may be one tag for each word: BIO and the like, or numbers of them."""
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or not tags:
        return False
    return all((isinstance(tag, str) and _TAG.fullmatch(tag)) or type(tag) is int for tag in tags)


def is_conversation(value: object) -> bool:
    """Whether it is a list of turns, or JSON of one."""
    turns = decoded(value)
    return isinstance(turns, list) and bool(turns) and all(_is_turn(turn) and not _is_call(turn) for turn in turns)


def last_answer(value: object) -> tuple[list[Any], Any] | None:
    """The turns before the assistant's last one, and this one, if the conversation ends with it."""
    turns = decoded(value)
    if not is_conversation(value) or (turns[-1].get("role") or turns[-1].get("from")) not in _ASSISTANT:
        return None
    return turns[:-1], turns[-1]


_ASSISTANT = ("assistant", "gpt", "model")


def decoded(value: object) -> Any:
    """A list or object that is given as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_turn(value: object) -> bool:
    """Whether it is a turn of a conversation, or calls of tools."""
    if isinstance(value, list):
        return bool(value) and all(_is_call(one) for one in value)
    return isinstance(value, Mapping) and (("role" in value or "from" in value) or "tool_calls" in value)


def _is_call(value: object) -> bool:
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    return isinstance(inner, Mapping) and "name" in inner and ("arguments" in inner or "parameters" in inner)


def _are_spans(value: object) -> bool:
    def is_span(one: object) -> bool:
        fields = [one.get(name) for name in ("start", "end", "label")] if isinstance(one, Mapping) else one
        match fields:
            case [int(), int(), str()]:
                return True
        return False

    return isinstance(value, list) and bool(value) and all(map(is_span, value))


def numbers_of(labels: Sequence[Any]) -> list[Decimal] | None:
    """The labels as numbers; None if one of them is none, or if there is no label."""
    try:
        numbers = [Decimal(str(label).strip()) for label in labels if not isinstance(label, bool)]
    except InvalidOperation:
        return None
    finite = bool(numbers) and len(numbers) == len(labels) and all(number.is_finite() for number in numbers)
    return numbers if finite else None


def _plain(number: Decimal) -> int | float:
    return int(number) if number % 1 == 0 else float(number)
