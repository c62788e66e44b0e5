"""Intents and slots of requests: semantic parsing with one level.

A label is the canonical JSON `{"intent": "PLAY_MUSIC", "tags": ["O", "B-ARTIST", ...]}` with one BIO tag for each of
`words_of(text)`. Spans follow CoNLL: I-x after O or after another type opens a span; labels write it as B-x. Teachers
write the decoupled bracketed parse of TOP: `[IN:PLAY_MUSIC [SL:ARTIST westbam ] ]`, where a word that looks like a
bracket has a backslash before it.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, Metric
from retort.errors import ConfigError, DataError, RowFault
from retort.problems.base import (
    LARK_OPTIONS,
    Constraint,
    Floats,
    Mended,
    check_apart,
    gbnf_text,
    gold_text,
    is_missing,
    lark_rules,
    lark_text,
    listed,
    looks,
    ratio,
    row_name,
    unspaced,
)
from retort.problems.parses import TOP, Notation, Unparsable, align, read_brackets, shortened
from retort.problems.words import words_of
from retort.records.base import Label, ParseFailure

Span = tuple[str, int, int]
"""A slot's name, its first word, and the word after its last, counted from 0."""

TARGET = "target"
"""The column in which SNIPS and TOP have the parse; read if the label column is absent."""

_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z0-9])(?=[A-Z][a-z])")


class Slots:
    """Requests with these `intents` and their slots, named as in the data (PlayMusic, object-type) or as in a parse.

    Raises ConfigError if there is no intent, or if two names would become one.
    """

    notation = TOP
    field = "problem.intents"
    """Of the config, for errors."""

    def __init__(self, intents: Mapping[str, Sequence[str]]) -> None:
        if not intents:
            raise ConfigError("problem.intents names no intent")
        check_spelling(self.field, intents, are_intents=True)
        slots = (name for names in intents.values() for name in names)
        check_spelling(self.field, slots, are_intents=False)
        self._slots: dict[str, tuple[str, ...]] = {}
        for intent, names in sorted(intents.items()):
            self._slots[intent_name(intent)] = tuple(sorted({slot_name(name) for name in names}))
        self._all_slots = tuple(sorted({name for names in self._slots.values() for name in names}))
        tags = [f"{prefix}-{name}" for name in self._all_slots for prefix in "BI"]
        self._tags = ("O", *tags)
        self._intents = tuple(sorted(self._slots))
        self._num_heads = int(self.notation.has_intent)
        """The number of units before those of the words."""
        heads = [f"IN:{intent}" for intent in self._intents] if self.notation.has_intent else []
        self._classes = (*self._tags, *heads)
        self._tags_of_intent = np.array(
            [[tag == "O" or tag[2:] in self._slots[intent] for tag in self._tags] for intent in self._intents]
        )
        self._index = {name: index for index, name in enumerate(self._classes)}

    @property
    def classes(self) -> tuple[str, ...]:
        """First the tags ("O", then B- and I- of each slot of any intent), then the intents ("IN:PLAY_MUSIC")."""
        return self._classes

    @property
    def sigmoids(self) -> tuple[str, ...]:
        return ()

    @property
    def instruction(self) -> str:
        return (
            "Parse the user's request into a bracketed semantic parse. Write the intent as [IN:NAME ... ] and, inside "
            "it, every slot in the order of the request as [SL:NAME words ], copying the slot's words exactly from the "
            "request. Words that fill no slot are left out. Use only these intents and slots:\n{schema}"
        )

    @property
    def schema(self) -> str:
        """One line per intent, with its slots."""
        return "\n".join(f"{intent}: {unspaced(slots)}" for intent, slots in self._slots.items())

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. Tags and intent take precedence over a parse; blank fields mean no label."""
        text = str(row[columns.text])
        if has_tags(row, columns):
            intent, tags = _read_tags(row, columns)
            return self._checked(intent, tags, text)
        return self._gold_parse(text, gold_brackets(row, columns))

    def _gold_parse(self, text: str, brackets: str) -> Label | None:
        """The label in a gold row's parse; None if that is empty. Raises DataError."""
        if not brackets:
            return None
        label = self.parse(text, brackets)
        if isinstance(label, ParseFailure):
            raise DataError(f"the parse '{shortened(brackets)}' is no label: {label.detail}")
        return label

    def _checked(self, intent: str, tags: Sequence[str], text: str) -> Label:
        """The label with these canonical names. Raises DataError if they do not fit the schema or the text."""
        num_words = len(words_of(text))
        if len(tags) != num_words:
            raise DataError(f"{len(tags)} tags for {num_words} words; give one tag for each word")
        if intent not in self._slots:
            raise DataError(f"intent '{intent}' is not known; allowed: {listed(self._intents)}")
        for name in (tag[2:] for tag in tags if tag != "O"):
            if name not in self._slots[intent]:
                raise DataError(self._unknown_slot(intent, name))
        return encode(intent, tags)

    def _unknown_slot(self, intent: str, name: str) -> str:
        allowed = listed(self._slots[intent]) or "none"
        if name in self._all_slots:
            return f"slot '{name}' does not belong to intent {intent}; allowed there: {allowed}"
        return f"slot '{name}' exists in no intent; allowed in {intent}: {allowed}"

    def render(self, text: str, label: Label) -> str:
        intent, tags = decode(label)
        words, opening = [self.notation.escaped(word) for word in words_of(text)], self.notation.slot
        slots = [f"{opening}{name} {' '.join(words[start:end])} ] " for name, start, end in spans(tags)]
        return f"{self.notation.frame}{intent} {''.join(slots)}]"

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. White space and the case of names are ignored.

        Reason codes: `empty`, `no-intent`, `unknown-intent`, `unknown-slot`, `empty-slot`, `unbalanced-brackets`,
        `nested-brackets`, `words-outside-slots`, `text-after-parse`, `words-not-in-request`, `overlapping-slots`.
        """
        try:
            parse = read_brackets(completion, self.notation)
            if parse.intent not in self._slots:
                detail = f"Intent '{shortened(parse.intent)}' is not known; allowed: {listed(self._intents)}."
                raise Unparsable("unknown-intent", detail)
            for name, _ in parse.slots:
                if name not in self._slots[parse.intent]:
                    detail = self._unknown_slot(parse.intent, shortened(name))
                    raise Unparsable("unknown-slot", f"{detail[0].upper()}{detail[1:]}.")
            return encode(parse.intent, align(words_of(text), parse.slots, self.notation.noun))
        except Unparsable as failure:
            return ParseFailure(failure.reason, failure.detail, completion)

    def mend(self, text: str, completion: str) -> Mended:
        return Mended(completion)

    def uncut(self, completion: str) -> str:
        """See `Problem.uncut`. All of it, since a parse that was cut is not closed."""
        return completion

    def constraint(self, text: str) -> Constraint:
        """See `Problem.constraint`: every intent with any number of its slots, each with consecutive words of `text`.

        The grammar is linear in the number of words: `w3` derives word 3 and what may follow it. In GBNF, it does not
        count how often a word is used; `parse` rejects slots that share one. In Lark, it does.
        """
        words, notation = [self.notation.escaped(word) for word in words_of(text)], self.notation
        rules = ["root ::= " + " | ".join(f"intent{number}" for number in range(len(self._intents)))]
        for number, intent in enumerate(self._intents):
            openings = " | ".join(gbnf_text(f"{notation.slot}{name} ") for name in self._slots[intent])
            slots = f'(({openings}) span "] ")* ' if openings and words else ""
            rules.append(f'intent{number} ::= {gbnf_text(f"{notation.frame}{intent} ")} {slots}"]"')
        if words:
            rules.append("span ::= " + " | ".join(f"w{number}" for number in range(len(words))))
        for number, word in enumerate(words):
            rest = f" w{number + 1}?" if number + 1 < len(words) else ""
            rules.append(f"w{number} ::= {gbnf_text(f'{word} ')}{rest}")
        counting = f"{LARK_OPTIONS}start: label\n{self.grammar(text)}"
        return Constraint(grammar="\n".join(rules) + "\n", lark=counting)

    def grammar(self, text: str) -> str:
        """See `Problem.grammar`: every intent with its slots over consecutive words, in the order of `text`, using no
        word twice.

        The rules count the words passed so far in the lower 16 bits of their parameter; the bits above are the intent.
        """
        words, notation = [self.notation.escaped(word) for word in words_of(text)], self.notation
        end = len(words)
        intents, slots, span = [], ['"]"'], []
        for number, intent in enumerate(self._intents):
            intents.append(f"{lark_text(f'{notation.frame}{intent} ')} slots::{number << 16}")
            if names := " | ".join(lark_text(f"{notation.slot}{name} ") for name in self._slots[intent]):
                slots.append(f"({names}) start_of_span::_ %if and(eq([16:64], {number}), lt([0:16], {end}))")
        for number, word in enumerate(words):
            span.append(f"{lark_text(f'{word} ')} rest_of_span::incr([0:16]) %if eq([0:16], {number})")
        rules = {
            "label": intents,
            "slots::_": slots,
            "start_of_span::_": [*span, f"nothing::_ start_of_span::incr([0:16]) %if lt([0:16], {max(0, end - 1)})"],
            "rest_of_span::_": [*span, '"] " slots::_'],
            # llguidance 1.9 fails on a rule that consists only of another one with a new parameter.
            "nothing::_": ['"" %if ge(_, 0)'],
        }
        return lark_rules(rules)

    def words(self, text: str) -> list[str]:
        return words_of(text)

    def sites(self, num_words: int) -> NDArray[np.int64]:
        return np.arange(1 - self._num_heads, num_words + 1)

    def targets(self, text: str, label: Label) -> list[int]:
        intent, tags = decode(label)
        heads = [self._index[f"IN:{intent}"]] if self._num_heads else []
        return [*heads, *(self._index[tag] for tag in tags)]

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        """See `Problem.allowed`. The unit of the intent takes intents, the others take tags."""
        is_tag = np.arange(len(self._classes)) < len(self._tags)
        allowed = np.empty((num_units, len(self._classes)), dtype=np.bool_)
        allowed[: self._num_heads], allowed[self._num_heads :] = ~is_tag, is_tag
        return allowed

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """See `Problem.decide`. The intent and tags with the highest joint probability among the combinations that the
        schema allows; an I-x that opens a span then becomes B-x.

        Raises ValueError unless there is one unit for the intent and one for each word.
        """
        num_words, num_heads = len(words_of(text)), self._num_heads
        if len(probabilities) != num_heads + num_words:
            wanted = f"{num_words} words" + " and the intent" * num_heads
            raise ValueError(f"{len(probabilities)} units of probabilities for {wanted}")
        num_tags = len(self._tags)
        heads = probabilities[:num_heads, num_tags:].reshape(num_heads, len(self._intents))
        tags = probabilities[num_heads:, :num_tags]
        best_tags = (tags[:, None, :] * self._tags_of_intent).argmax(axis=2)  # (words, intents)
        chosen = np.concatenate([heads, np.take_along_axis(tags, best_tags, axis=1)])  # (units, intents)
        total = np.append(heads.sum(axis=1), tags.sum(axis=1))[:, None]
        # The floor keeps the logarithm finite where a class has probability 0.
        logs = np.log(np.maximum(ratio(chosen, np.broadcast_to(total, chosen.shape)), 1e-12))
        logs = logs.sum(axis=0) / max(1, len(logs))
        best = int(logs.argmax())
        label = encode(self._intents[best], [self._tags[index] for index in best_tags[:, best].tolist()])
        return label, min(float(np.exp(logs[best])), 1.0)

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        return gold == predicted

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """slot_f1 and entity_f1: number of spans (true positives, false positives, false negatives); the others:
        (correct, 1)."""
        gold_intent, wanted = _read(gold)
        intent, found = _read(predicted) if predicted is not None else (None, frozenset[Span]())
        if metric == "intent_accuracy":
            return np.array([float(intent == gold_intent), 1.0])
        if metric == "exact_match":
            return np.array([float(intent == gold_intent and found == wanted), 1.0])
        both = len(wanted & found)
        return np.array([both, len(found) - both, len(wanted) - both], dtype=np.float64)

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. slot_f1 and entity_f1 are conlleval's micro F1 over spans, and 1 if neither side has a
        span; the others are 0 without rows."""
        match metric:
            case "slot_f1" | "entity_f1":
                doubled = 2 * sums[..., 0]
                return ratio(doubled, doubled + sums[..., 1] + sums[..., 2], empty=1.0)
            case "intent_accuracy" | "exact_match":
                return ratio(sums[..., 0], sums[..., 1])
        raise ConfigError(f"metric '{metric}' does not measure slots")

    def parts(self, label: Label) -> list[str]:
        """The intent, then slots as `ARTIST:2-4`, with words counted from 1 and the last included."""
        intent, tags = decode(label)
        return [intent, *(f"{name}:{start + 1}-{end}" for name, start, end in spans(tags))]


def infer_intents(rows: Iterable[Mapping[str, Any]], columns: ColumnsConfig) -> dict[str, list[str]]:
    """The slots of each intent that occur in raw labeled rows, sorted. Rows without a label are skipped.

    Raises DataError, naming the row, if a label cannot be read, or if there is none; ConfigError if two names would
    become one.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    written: defaultdict[tuple[bool, bool], list[str]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        try:
            if has_tags(row, columns):
                intent, tags = _read_tags(row, columns)
                found[intent].update(tag[2:] for tag in tags if tag != "O")
            elif brackets := gold_brackets(row, columns):
                parse = read_brackets(brackets)
                found[parse.intent].update(name for name, _ in parse.slots)
        except RowFault:
            raise  # it says where
        except (DataError, Unparsable) as error:
            raise DataError(f"{row_name(row, number)}: {error}") from None
        for kind, name in written_names(row, columns, TOP):
            written[kind].append(name)
    for (_, are_intents), names in written.items():
        check_spelling("data.labeled", names, are_intents=are_intents)
    if not found:
        fields = f"'{columns.tags}', '{columns.label}' and '{TARGET}'"
        raise DataError(f"no labeled row has a label (looked in {fields}); see data.columns, or give problem.intents")
    return {intent: sorted(names) for intent, names in sorted(found.items())}


def written_names(
    row: Mapping[str, Any], columns: ColumnsConfig, notation: Notation
) -> Iterator[tuple[tuple[bool, bool], str]]:
    """The names in a raw row, each after (whether it is of a parse, whether it is an intent): a parse may spell a name
    otherwise than tags do."""
    if has_tags(row, columns):
        yield (False, True), _intent(row, columns)
        tags = row[columns.tags]
        tags = tags if isinstance(tags, list | tuple) else gold_text(row, columns.tags).split()
        yield from (((False, False), str(tag)[2:]) for tag in tags)
    else:
        tokens = words_of(gold_brackets(row, columns))
        opened = [token for token in tokens if notation.is_bracket(token) and token != "]"]
        yield from (((True, place == 0), token[len(notation.slot) :]) for place, token in enumerate(opened))


def check_spelling(field: str, names: Iterable[str], *, are_intents: bool) -> None:
    """Raises ConfigError for two names that become one."""
    canonical, camel = (intent_name, "camel case, ") if are_intents else (slot_name, "")
    difference = f"{camel}case, white space, hyphens, underscores and how Unicode writes a letter"
    check_apart(field, names, lambda name: canonical(looks(name)), difference)


def intent_name(name: str) -> str:
    """The canonical name of an intent, in upper snake case: PlayMusic -> PLAY_MUSIC."""
    return slot_name(_WORD_STARTS.sub("_", name.strip()))


def slot_name(name: str) -> str:
    """The canonical name of a slot: upper case, with underscores for hyphens and white space. Camel case is not split,
    because SNIPS's own parses write timeRange as TIMERANGE."""
    return re.sub(r"[\s-]+", "_", name.strip()).upper()


def encode(intent: str, tags: Sequence[str]) -> Label:
    """The canonical label, in which an I-x that opens a span becomes B-x."""
    canonical, previous = [], "O"
    for tag in tags:
        if tag[:1] == "I" and previous[2:] != tag[2:]:
            tag = f"B{tag[1:]}"
        canonical.append(tag)
        previous = tag
    fields = {"intent": intent, "tags": canonical} if intent else {"tags": canonical}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def decode(label: Label) -> tuple[str, list[str]]:
    """The (intent, tags) of a canonical label."""
    fields = json.loads(label)
    return fields.get("intent", ""), fields["tags"]


@lru_cache(maxsize=1024)  # a row's metrics are computed in succession, and so are all systems' scores of a gold label
def _read(label: Label) -> tuple[str, frozenset[Span]]:
    """The (intent, spans) of a canonical label."""
    intent, tags = decode(label)
    return intent, frozenset(spans(tags))


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of canonical tags, in order."""
    found: list[Span] = []
    for position, tag in enumerate(tags):
        if tag[0] == "B":
            found.append((tag[2:], position, position + 1))
        elif tag[0] == "I":
            name, start, _ = found[-1]
            found[-1] = (name, start, position + 1)
    return found


def _read_tags(row: Mapping[str, Any], columns: ColumnsConfig) -> tuple[str, list[str]]:
    """The (intent, tags) of a row that has tags, with canonical names but not yet checked against schema and words.

    Raises DataError if the intent is missing or a tag is not in BIO form.
    """
    intent = _intent(row, columns)
    if not intent:
        raise DataError(f"it has tags ('{columns.tags}') but no intent ('{columns.intent}')")
    return intent_name(intent), bio_tags(row, columns)


def bio_tags(row: Mapping[str, Any], columns: ColumnsConfig) -> list[str]:
    """The tags of a row that has some, with canonical names. Raises DataError if one is not in BIO form."""
    tags = row[columns.tags]
    if not isinstance(tags, str | bytes | list | tuple):
        raise DataError(f"'{columns.tags}' is {tags!r:.60}, where a tag for each word is needed")
    if isinstance(tags, list | tuple):
        tags = [gold_text({columns.tags: tag}, columns.tags) for tag in tags]
    else:
        tags = gold_text(row, columns.tags).split()
    for tag in tags:
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) == 2):
            raise DataError(f"tag '{tag}' is not O, B-slot or I-slot")
    return [tag[:2] + slot_name(tag[2:]) if tag != "O" else tag for tag in tags]


def _intent(row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    value = row.get(columns.intent)
    # A column of integers with missing values is read as floats (3.0).
    return str(int(value)) if isinstance(value, float) and value.is_integer() else gold_text(row, columns.intent)


def has_tags(row: Mapping[str, Any], columns: ColumnsConfig) -> bool:
    """Whether there is a tag at all: a blank text and an empty list are none."""
    tags = row.get(columns.tags)
    return not is_missing(tags) and tags != [] and not (isinstance(tags, str) and not tags.strip())


def gold_brackets(row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    """The parse of a raw row; empty if it has none."""
    return gold_text(row, TARGET if is_missing(row.get(columns.label)) else columns.label)
