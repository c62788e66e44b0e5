"""Several fields of a row as one text, and back.

Each field is a line, `name: value`, with line breaks in a value written as `\\n` and backslashes as `\\\\`. That way
the text can be parsed unambiguously, a language model sees which field is which, and values may be empty.
"""

import re
from collections.abc import Mapping

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def join_fields(fields: Mapping[str, str]) -> str:
    """Join the fields in the given order. Names must not contain colons, line breaks or backslashes."""
    return "\n".join(f"{name}: {_escaped(value)}" for name, value in fields.items())


def split_fields(text: str) -> dict[str, str]:
    """The inverse of `join_fields`. Raises ValueError for a text that `join_fields` cannot have written."""
    pairs = [line.partition(": ") for line in text.split("\n")]
    if any(not colon for _, colon, _ in pairs):
        raise ValueError(f"'{text:.60}' does not hold fields, one `name: value` on each line")
    return {name: _ESCAPED.sub(lambda sign: "\n" if sign[1] == "n" else sign[1], value) for name, _, value in pairs}


def fields_of(text: str, names: tuple[str, ...]) -> list[str]:
    """The fields of a text that `join_fields` wrote, in the order of `names`."""
    fields = split_fields(text)
    return [fields[name] for name in names]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
