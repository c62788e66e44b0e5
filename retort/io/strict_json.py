"""JSON in which no object has a key twice."""

import json
from collections.abc import Callable
from typing import Any


class KeyTwice(ValueError):
    """A JSON object has a key twice. Which one counts would be a guess."""


def json_value(
    text: str, parse_float: Callable[[str], Any] | None = None, parse_constant: Callable[[str], Any] | None = None
) -> Any:
    """Like `json.loads`, but raises KeyTwice, a ValueError, for an object that has a key twice."""
    return json.loads(text, object_pairs_hook=_keys_once, parse_float=parse_float, parse_constant=parse_constant)


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise KeyTwice(f"'{twice:.60}' is written twice")
    return found
