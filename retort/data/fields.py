"""Several fields of a row as one text, and back.

A line for each field, `name: value`; a line break in a value is written as `\\n`, a backslash as `\\\\`. So every text
has one reading, a language model sees what is what, and a value may be empty.
"""

import re
from collections.abc import Mapping

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def join_fields(fields: Mapping[str, str]) -> str:
    """In the order given. A name must hold no colon, line break or backslash."""
    return "\n".join(f"{name}: {_escaped(value)}" for name, value in fields.items())


def split_fields(text: str) -> dict[str, str]:
    """What `join_fields` was given. Raises ValueError for a text that it did not write."""
    pairs = [line.partition(": ") for line in text.split("\n")]
    if any(not colon for _, colon, _ in pairs):
        raise ValueError(f"'{text:.60}' does not hold fields, one `name: value` on each line")
    return {name: _ESCAPED.sub(lambda sign: "\n" if sign[1] == "n" else sign[1], value) for name, _, value in pairs}


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
