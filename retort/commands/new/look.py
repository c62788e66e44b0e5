"""What a file's rows hold: which column is the text, which the label, and what kind of problem that makes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from retort.commands.new.labels import MOST_CLASSES, are_tags, is_conversation, kind_of
from retort.errors import DataError
from retort.problems.base import is_missing

Rows = Sequence[Mapping[str, Any]]

CONVERSATIONS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog")
TEXTS = (
    *("text", "sentence", "utterance", "content", "review", "question", "query", "body", "message", "input", "title"),
    *("prompt", "request", "comment", "document", "essay", "description", "tokens", "words"),
)
LABELS = (
    *("label", "labels", "class", "category", "intent", "tree", "parse", "target", "answer", "summary", "output"),
    *(
        "entities",
        "spans",
        "emotions",
        "topics",
        "tags",
        "score",
        "rating",
        "stars",
        "mark",
        "grade",
        "call",
        "response",
    ),
)
TAGS = ("bio", "tags", "ner_tags")


class Found(NamedTuple):
    """What was recognized."""

    kind: str
    """Of the problem."""
    columns: dict[str, str]
    """Names of the columns, by the field of `data.columns`."""
    words: int
    """Number of words that 99 % of the texts do not exceed."""


def look(rows: Rows, pool: Rows, asked: Mapping[str, str | None], place: str) -> Found:
    """`rows` may have labels, `pool` has texts at least; `asked` are the columns and the kind that the user named.

    Raises DataError if a column cannot be recognized, with the option that names it.
    """
    if not rows or not pool:
        raise DataError(f"{place}: it has no rows")
    ids = [name for name in rows[0] if _is_id(pool, name)]
    taken = {*ids, *(asked[role] for role in ("label", "id"))}
    columns = {"text": asked["text"] or _text_column(_without(pool, taken), place)}
    others = _without(rows, {columns["text"], *ids})
    tags = next((name for name in TAGS if any(are_tags(row.get(name)) for row in others)), None)
    if tags and asked["label"] in (None, tags):
        columns["tags"] = tags
        if any(_filled(row.get("intent")) for row in others):
            columns["intent"] = "intent"
    else:
        columns["label"] = asked["label"] or _label_column(others, columns["text"], place)
    if identifier := asked["id"] or next(iter(ids), None):
        columns["id"] = identifier
    elif "id" in rows[0] or "id" in pool[0]:
        columns["id"] = NO_ID
    _check_columns(rows, pool, asked, columns, place)
    return Found(asked["problem"] or _kind(rows, columns), columns, _words(pool, columns["text"]))


NO_ID = "no_id"
"""A column that is not there: a row's id is then the digest of its text."""


def has_label(row: Mapping[str, Any], found: Found) -> bool:
    """Whether the row has a gold label, which for sets and lists of spans may be an empty list."""
    value = row.get(found.columns.get("tags", found.columns.get("label", "")))
    return _filled(value) or (value == [] and "tags" not in found.columns and found.kind in ("multi-label", "entities"))


def as_text(value: object) -> str:
    """A text, or the words of a list of words or of turns."""
    if isinstance(value, Mapping):
        return as_text(value.get("content", value.get("value", "")))
    return " ".join(map(as_text, value)) if isinstance(value, list) else "" if is_missing(value) else str(value)


def _without(rows: Rows, names: set[str | None]) -> Rows:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def _kind(rows: Rows, columns: Mapping[str, str]) -> str:
    if "tags" in columns:
        return "slots" if "intent" in columns else "entities"
    labels = [value for row in rows if _filled(value := row.get(columns["label"]))]
    texts = [value for row in rows if _filled(value := row.get(columns["text"]))]
    return kind_of(labels, columns["label"], is_chat=bool(texts) and all(map(is_conversation, texts)))


def _check_columns(
    rows: Rows, pool: Rows, asked: Mapping[str, str | None], columns: Mapping[str, str], place: str
) -> None:
    """Raises DataError for a column that no row has, and for a first line that is a row and no header."""
    for option in ("text", "label", "id"):
        name = asked[option]
        if name and not any(_filled(row.get(name)) for row in (*rows, *pool)):
            raise DataError(f"{place}: --{option} {name}: no row has this column; the columns are {_listed(rows[0])}")
    label = columns.get("label")
    if label and any(row.get(label) == label for row in rows):
        raise DataError(
            f"{place}: the first line is a row and no header, since '{label}' is also a label; put one before it, such "
            "as text,label"
        )


def _text_column(rows: Rows, place: str) -> str:
    for name in CONVERSATIONS:
        if any(is_conversation(row.get(name)) for row in rows):
            return name
    return _column(rows, TEXTS, _is_long, "--text", place, not_those=LABELS)


def _label_column(rows: Rows, text: str, place: str) -> str:
    if not any(rows):
        raise DataError(
            f"{place}: there is no column but '{text}'; some 50 rows need a label, in a column such as 'label'"
        )
    return _column(rows, LABELS, _repeats, "--label", place)


def _column(
    rows: Rows,
    usual: Sequence[str],
    fits: Callable[[list[Any]], float],
    option: str,
    place: str,
    not_those: Sequence[str] = (),
) -> str:
    """The first of the `usual` names that the rows have, else the one column that fits best, if any does, else the only
    one that is none of `not_those`."""
    names = {name: name.strip().lower() for row in rows for name, value in row.items() if _filled(value)}
    for wanted in usual:
        for name, lower in names.items():
            if lower == wanted:
                return name
    scores = {name: fits([row[name] for row in rows if _filled(row.get(name))]) for name in names}
    best = [name for name, score in scores.items() if score > 0 and score == max(scores.values())]
    if len(best) == 1:
        return best[0]
    left = [name for name, lower in names.items() if lower not in not_those]
    if len(left) == 1:
        return left[0]
    raise DataError(f"{place}: which column? Name it by {option}; the columns are {_listed(names)}")


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


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


def _words(rows: Rows, column: str) -> int:
    lengths = sorted(len(re.findall(r"\w+|[^\w\s]", as_text(row[column]))) for row in rows if _filled(row.get(column)))
    return lengths[int(0.99 * (len(lengths) - 1))] if lengths else 0


def _filled(value: object) -> bool:
    return not is_missing(value) and value not in ("", [])
