"""Named entities: slots of a text without an intent. A label is `{"tags": ["B-PERSON", "I-PERSON", "O", ...]}`.

Teachers write `[ [PERSON Angela Merkel ] [CITY Berlin ] ]`, and `[ ]` if there is none. The outer brackets show that an
answer is whole.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retort.config import ColumnsConfig
from retort.errors import DataError, RowFault
from retort.problems.base import row_name, unspaced
from retort.problems.parses import ENTITIES, Unparsable, read_brackets
from retort.problems.slots import Slots, bio_tags, check_spelling, gold_brackets, has_tags, slot_name, written_names
from retort.problems.words import word_places
from retort.records.base import Label

_NO_INTENT = ""


class Entities(Slots):
    """Entities of these types. Raises ConfigError if there is none, or if two names would become one."""

    notation = ENTITIES
    field = "problem.labels"

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__({_NO_INTENT: labels})

    @property
    def instruction(self) -> str:
        return (
            "Find the named entities of the text. Write [ ... ] and, inside it, every entity in the order of the text "
            "as [TYPE words ], copying its words exactly from the text; [ ] if there is none. Use only these types: "
            "{schema}"
        )

    @property
    def schema(self) -> str:
        return unspaced(self._slots[_NO_INTENT])

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. Tags take precedence over the label, which is a list of spans or as teachers write it."""
        text = str(row[columns.text])
        if has_tags(row, columns):
            return self._checked(_NO_INTENT, bio_tags(row, columns), text)
        spans = _spans(row, columns)
        if spans is None:
            return self._gold_parse(text, gold_brackets(row, columns))
        return self._checked(_NO_INTENT, _tags_of(text, spans), text)

    def _unknown_slot(self, intent: str, name: str) -> str:
        return f"'{name}' is no type of entity; allowed: {self.schema}"

    def parts(self, label: Label) -> list[str]:
        """The entities as `PERSON:2-4`, with words counted from 1 and the last included."""
        return super().parts(label)[1:]


def infer_labels(rows: Iterable[Mapping[str, Any]], columns: ColumnsConfig) -> list[str]:
    """The types of entities that occur in raw labeled rows, sorted. Rows without a label are skipped.

    Raises DataError, naming the row, if a label cannot be read, or if there is no entity;
    ConfigError if two names would become one.
    """
    found: set[str] = set()
    written: defaultdict[object, list[str]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        try:
            if has_tags(row, columns):
                found.update(tag[2:] for tag in bio_tags(row, columns) if tag != "O")
            elif (spans := _spans(row, columns)) is not None:
                found.update(slot_name(name) for _, _, name in spans)
                written["spans"] += [name for _, _, name in spans]
                continue
            elif brackets := gold_brackets(row, columns):
                found.update(name for name, _ in read_brackets(brackets, ENTITIES).slots)
        except RowFault:
            raise  # it says where
        except (DataError, Unparsable) as error:
            raise DataError(f"{row_name(row, number)}: {error}") from None
        for (is_of_parse, is_intent), name in written_names(row, columns, ENTITIES):
            if not is_intent:
                written[is_of_parse].append(name)
    for names in written.values():
        check_spelling("data.labeled", names, are_intents=False)
    if not found:
        raise DataError(
            f"no labeled row has an entity (looked in '{columns.tags}' and '{columns.label}'); see data.columns, or "
            "give problem.labels"
        )
    return sorted(found)


def _spans(row: Mapping[str, Any], columns: ColumnsConfig) -> list[tuple[int, int, str]] | None:
    """The (start, end, name) of each span in a raw label that is a list of spans, with characters counted from 0; None
    if the label is something else. Raises DataError."""
    value = row.get(columns.label)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return [_span(one) for one in value] if isinstance(value, list) else None


def _span(value: object) -> tuple[int, int, str]:
    fields = [value.get(name) for name in ("start", "end", "label")] if isinstance(value, dict) else value
    match fields:
        case [int(start), int(end), str(name)] if name.strip():
            return start, end, name
    raise DataError(f'{value!r:.80} is no span; give {{"start": 0, "end": 6, "label": "NAME"}} or [0, 6, "NAME"]')


def _tags_of(text: str, spans: Sequence[tuple[int, int, str]]) -> list[str]:
    """The BIO tags of the text's words. Raises DataError for a span that does not begin and end with words, or that
    shares one with another."""
    words = word_places(text)
    starts, ends = ({place[side]: number for number, place in enumerate(words)} for side in (0, 1))
    tags = ["O"] * len(words)
    for start, end, name in spans:
        shown = f"the span {start}-{end} '{text[start:end][:80]}'"
        if start not in starts or end not in ends or starts[start] > ends[end]:
            raise DataError(f"{shown} does not begin and end with a word; words are what white space separates")
        first, after = starts[start], ends[end] + 1
        if any(tag != "O" for tag in tags[first:after]):
            raise DataError(f"{shown} shares a word with another; entities must not overlap")
        tags[first:after] = [f"B-{slot_name(name)}"] + [f"I-{slot_name(name)}"] * (after - first - 1)
    return tags
