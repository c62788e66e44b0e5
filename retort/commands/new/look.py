"""What a file's rows hold: which column is the text, which the label, and what kind of problem that makes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from retort.errors import DataError
from retort.problems.base import is_missing

Rows = Sequence[Mapping[str, Any]]

TEXTS = ("text", "sentence", "utterance", "content", "review", "question", "query", "body", "message", "input", "title")
LABELS = ("label", "class", "category", "intent", "tree", "parse", "target", "answer", "summary", "output")
TAGS = ("bio", "tags", "ner_tags")

MOST_CLASSES = 200
ROWS_PER_CLASS = 3
"""More distinct labels than a third of the rows are no classes, but texts."""


class Found(NamedTuple):
    """What was recognized."""

    kind: str
    """`classification`, `slots`, `constituency` or `text`."""
    columns: dict[str, str]
    """Names of the columns, by the field of `data.columns`."""
    words: int
    """Number of words that 99 % of the texts do not exceed."""


def look(rows: Rows, pool: Rows, asked: Mapping[str, str | None], place: str) -> Found:
    """`rows` may have labels, `pool` has texts at least; `asked` are the columns and the kind that the user named.

    Raises DataError if a column cannot be recognized, with the option that names it.
    """
    columns = {"text": asked["text"] or _column(pool, TEXTS, _is_long, "--text", place)}
    others = [{name: value for name, value in row.items() if name not in columns.values()} for row in rows]
    tags = next((name for name in TAGS if any(_filled(row.get(name)) for row in others)), None)
    if tags and asked["label"] is None and any(_filled(row.get("intent")) for row in others):
        columns |= {"tags": tags, "intent": "intent"}
    else:
        columns["label"] = asked["label"] or _column(others, LABELS, _repeats, "--label", place)
    if identifier := asked["id"] or next((name for name in rows[0] if _is_id(pool, name)), None):
        columns["id"] = identifier
    for option in ("text", "label", "id"):
        name = asked[option]
        if name and not any(_filled(row.get(name)) for row in (*rows, *pool)):
            names = ", ".join(map(repr, rows[0] if rows else {}))
            raise DataError(f"{place}: --{option} {name}: no row has this column; the columns are {names}")
    labels = [row[columns["label"]] for row in rows if _filled(row.get(columns["label"]))] if "label" in columns else []
    kind = asked["problem"] or ("slots" if "tags" in columns else _kind(labels))
    return Found(kind, columns, _words(pool, columns["text"]))


def has_label(row: Mapping[str, Any], found: Found) -> bool:
    return _filled(row.get(found.columns.get("tags", found.columns.get("label", ""))))


def _column(rows: Rows, usual: Sequence[str], fits: Callable[[list[Any]], float], option: str, place: str) -> str:
    """The first of the `usual` names that the rows have, else the one column that fits best, if any does."""
    names = {name: name.lower() for row in rows for name in row}
    for wanted in usual:
        for name, lower in names.items():
            if lower == wanted and any(_filled(row.get(name)) for row in rows):
                return name
    scores = {name: fits([row[name] for row in rows if _filled(row.get(name))]) for name in names}
    best = max(scores, key=scores.__getitem__, default=None)
    if best is None or scores[best] <= 0 or list(scores.values()).count(scores[best]) > 1:
        listed = ", ".join(map(repr, names)) or "none"
        raise DataError(f"{place}: which column? Name it by {option}; the columns are {listed}")
    return best


def _is_long(values: list[Any]) -> float:
    """The mean length; 0 for anything but texts of several words."""
    texts = [value for value in values if isinstance(value, str) and " " in value.strip()]
    return sum(map(len, texts)) / len(values) if len(texts) > len(values) / 2 else 0


def _repeats(values: list[Any]) -> float:
    """1 if the values can be classes, else 0: several such columns are not told apart."""
    distinct = {str(value) for value in values}
    return float(2 <= len(distinct) <= MOST_CLASSES and len(values) > len(distinct))


def _is_id(rows: Rows, name: str) -> bool:
    if not re.search(r"(^|[_-])(id|uid|uuid|key)$|[a-z]Id$", name):
        return False
    values = [str(row[name]) for row in rows if _filled(row.get(name))]
    return len(values) == len(rows) == len(set(values)) > 0


def _kind(labels: list[Any]) -> str:
    texts = [str(label).strip() for label in labels]

    def most(fits: Callable[[str], object]) -> bool:
        return sum(bool(fits(text)) for text in texts) > 0.9 * len(texts)

    if most(lambda text: text.startswith("[IN:")):
        return "slots"
    if most(lambda text: text.startswith("(") and text.endswith(")") and text.count("(") == text.count(")") > 1):
        return "constituency"
    distinct = len(set(texts))
    if distinct <= MOST_CLASSES and len(texts) >= ROWS_PER_CLASS * distinct:
        return "classification"
    return "text"


def _words(rows: Rows, column: str) -> int:
    lengths = sorted(len(re.findall(r"\w+|[^\w\s]", str(row[column]))) for row in rows if _filled(row.get(column)))
    return lengths[int(0.99 * (len(lengths) - 1))] if lengths else 0


def _filled(value: object) -> bool:
    return not is_missing(value) and value not in ("", [])
