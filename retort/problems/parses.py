"""Bracketed parses as text, read and aligned with a request: those of TOP, `[IN:PLAY_MUSIC [SL:ARTIST westbam ] ]`, and
entities in the same form without names before the names, `[ [ARTIST westbam ] ]`.

A word in a slot that looks like a bracket has a backslash before it, so that every parse can be read back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retort.problems.words import words_of


@dataclass(frozen=True, slots=True)
class Notation:
    """How a parse is written."""

    frame: str
    """What opens the whole; the name of the intent follows at once, if there are intents."""
    slot: str
    """What opens a slot; its name follows."""
    noun: str
    """What people call a slot."""
    has_intent: bool

    def is_bracket(self, token: str) -> bool:
        return token == "]" or any(token[: len(opening)].upper() == opening for opening in (self.frame, self.slot))

    def escaped(self, word: str) -> str:
        """The word as it is written in a slot: with a backslash if it looks like a bracket, or like one so written."""
        return f"\\{word}" if self.is_bracket(word.lstrip("\\")) else word

    def unescaped(self, word: str) -> str:
        """The word of the request that `escaped` wrote so."""
        return word[1:] if word[:1] == "\\" and self.is_bracket(word.lstrip("\\")) else word


TOP = Notation("[IN:", "[SL:", "slot", has_intent=True)
ENTITIES = Notation("[", "[", "entity", has_intent=False)


@dataclass(frozen=True, slots=True)
class Parse:
    """A parse as written, not yet checked against a schema or a request."""

    intent: str
    """Empty if the notation has none."""
    slots: list[tuple[str, list[str]]]
    """(Name, words) of each slot, in the order written."""


class Unparsable(Exception):
    """A text that is not a parse, with a reason code and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_brackets(completion: str, notation: Notation = TOP) -> Parse:
    """Reads `[IN:NAME [SL:NAME words ] ... ]`, with names in upper case. Raises Unparsable."""
    tokens, noun = words_of(completion), notation.noun
    if not tokens:
        raise Unparsable("empty", "The completion is empty.")
    if not _opens(tokens[0], notation.frame, has_name=notation.has_intent):
        opening = f"{notation.frame}NAME" if notation.has_intent else notation.frame
        raise Unparsable("no-intent", f"It must begin with {opening}, not '{shortened(tokens[0])}'.")
    slots, at = [], 1
    while at < len(tokens) and _opens(tokens[at], notation.slot):
        end = next((i for i in range(at + 1, len(tokens)) if notation.is_bracket(tokens[i])), len(tokens))
        name, words = tokens[at][len(notation.slot) :].upper(), tokens[at + 1 : end]
        if end == len(tokens):
            detail = f"{noun.capitalize()} '{shortened(name)}' is not closed by ' ]'."
            raise Unparsable("unbalanced-brackets", detail)
        if tokens[end] != "]":
            raise Unparsable("nested-brackets", f"'{shortened(tokens[end])}' opens inside {noun} '{shortened(name)}'.")
        if not words:
            raise Unparsable("empty-slot", f"{noun.capitalize()} '{shortened(name)}' holds no words.")
        slots.append((name, [notation.unescaped(word) for word in words]))
        at = end + 1
    _check_end(tokens[at:], notation)
    return Parse(tokens[0][len(notation.frame) :].upper(), slots)


def _check_end(rest: Sequence[str], notation: Notation) -> None:
    """Raises Unparsable unless `rest`, what follows the last slot, is the one bracket that closes the whole."""
    noun, whole = notation.noun, "intent" if notation.has_intent else "whole"
    if not rest:
        raise Unparsable("unbalanced-brackets", f"The {whole} is not closed by ' ]'.")
    if notation.is_bracket(rest[0]) and rest[0] != "]":
        detail = f"'{shortened(rest[0])}' opens a second {whole} or a {noun} without a name."
        raise Unparsable("nested-brackets", detail)
    if rest[0] != "]":
        raise Unparsable("words-outside-slots", f"'{shortened(rest[0])}' is in no {noun}.")
    if len(rest) > 1 and rest[1] == "]":
        raise Unparsable("unbalanced-brackets", "A bracket is closed that was not opened.")
    if len(rest) > 1:
        raise Unparsable("text-after-parse", f"'{shortened(' '.join(rest[1:]))}' follows the parse.")


def _opens(token: str, opening: str, *, has_name: bool = True) -> bool:
    return token[: len(opening)].upper() == opening and (len(token) > len(opening)) == has_name


def align(words: Sequence[str], slots: Iterable[tuple[str, list[str]]], noun: str = "slot") -> list[str]:
    """The BIO tags of the request's `words`. Raises Unparsable.

    A slot is matched to its first free occurrence after the previous slot, because slots are written in the order of
    the request, or else to its first free occurrence anywhere.
    """
    tags, after = ["O"] * len(words), 0
    for name, wanted in slots:
        places = _places(words, wanted)
        if not places:
            detail = f"'{shortened(' '.join(wanted))}' of {noun} {name} does not occur in the request."
            raise Unparsable("words-not-in-request", detail)
        free = [(start, end) for start, end in places if all(tag == "O" for tag in tags[start:end])]
        if not free:
            detail = f"'{shortened(' '.join(wanted))}' of {noun} {name} is already part of another {noun}."
            raise Unparsable("overlapping-slots", detail)
        start, after = next((place for place in free if place[0] >= after), free[0])
        tags[start:after] = [f"B-{name}"] + [f"I-{name}"] * (after - start - 1)
    return tags


def _places(words: Sequence[str], wanted: list[str]) -> list[tuple[int, int]]:
    """(First word, word after the last) of each occurrence. Models often write a plain space for a no-break space, so
    if the slot occurs nowhere as it is, all white space counts as equal."""
    length = len(wanted)
    exact = [(i, i + length) for i in range(len(words) - length + 1) if words[i : i + length] == wanted]
    pieces = " ".join(wanted).split()
    if exact or not pieces:
        return exact
    return [(start, end) for start in range(len(words)) if (end := _end_of(words, start, pieces)) is not None]


def _end_of(words: Sequence[str], start: int, pieces: list[str]) -> int | None:
    """The word after the last if the words from `start` on, parted at all white space, are `pieces`."""
    found: list[str] = []
    for end in range(start, len(words)):
        found += words[end].split()
        if len(found) >= len(pieces):
            return end + 1 if found == pieces else None
    return None


def shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
