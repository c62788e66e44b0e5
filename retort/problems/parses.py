"""The bracketed parses of TOP as text: `[IN:PLAY_MUSIC [SL:ARTIST westbam ] ]`, read and aligned with a request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parse:
    """A parse as written, not yet checked against a schema or a request."""

    intent: str
    slots: list[tuple[str, list[str]]]
    """(Name, words) of each slot, in the order written."""


class Unparsable(Exception):
    """A text that is not a parse, with a reason code and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_brackets(completion: str) -> Parse:
    """Reads `[IN:NAME [SL:NAME words ] ... ]`, with names in upper case. Raises Unparsable."""
    tokens = completion.split()
    if not tokens:
        raise Unparsable("empty", "The completion is empty.")
    if not _opens(tokens[0], "[IN:"):
        raise Unparsable("no-intent", f"It must begin with [IN:NAME, not '{shortened(tokens[0])}'.")
    slots, at = [], 1
    while at < len(tokens) and _opens(tokens[at], "[SL:"):
        end = next((i for i in range(at + 1, len(tokens)) if is_bracket(tokens[i])), len(tokens))
        name, words = tokens[at][4:].upper(), tokens[at + 1 : end]
        if end == len(tokens):
            raise Unparsable("unbalanced-brackets", f"Slot '{shortened(name)}' is not closed by ' ]'.")
        if tokens[end] != "]":
            raise Unparsable("nested-brackets", f"'{shortened(tokens[end])}' opens inside slot '{shortened(name)}'.")
        if not words:
            raise Unparsable("empty-slot", f"Slot '{shortened(name)}' holds no words.")
        slots.append((name, [unescaped(word) for word in words]))
        at = end + 1
    _check_end(tokens[at:])
    return Parse(tokens[0][4:].upper(), slots)


def _check_end(rest: Sequence[str]) -> None:
    """Raises Unparsable unless `rest`, what follows the last slot, is the one bracket that closes the intent."""
    if not rest:
        raise Unparsable("unbalanced-brackets", "The intent is not closed by ' ]'.")
    if is_bracket(rest[0]) and rest[0] != "]":
        raise Unparsable("nested-brackets", f"'{shortened(rest[0])}' opens a second intent or a slot without a name.")
    if rest[0] != "]":
        raise Unparsable("words-outside-slots", f"'{shortened(rest[0])}' is in no slot.")
    if len(rest) > 1 and rest[1] == "]":
        raise Unparsable("unbalanced-brackets", "A bracket is closed that was not opened.")
    if len(rest) > 1:
        raise Unparsable("text-after-parse", f"'{shortened(' '.join(rest[1:]))}' follows the parse.")


def _opens(token: str, bracket: str) -> bool:
    return len(token) > len(bracket) and token[:4].upper() == bracket


def escaped(word: str) -> str:
    """The word as it is written in a slot: with a backslash if it looks like a bracket, or like one so written."""
    return f"\\{word}" if is_bracket(word.lstrip("\\")) else word


def unescaped(word: str) -> str:
    """The word of the request that `escaped` wrote so."""
    return word[1:] if word[:1] == "\\" and is_bracket(word.lstrip("\\")) else word


def is_bracket(token: str) -> bool:
    return token == "]" or token[:4].upper() in ("[IN:", "[SL:")


def align(words: Sequence[str], slots: Iterable[tuple[str, list[str]]]) -> list[str]:
    """The BIO tags of the request's `words`. Raises Unparsable.

    A slot is matched to its first free occurrence after the previous slot, because slots are written in the order of
    the request, or else to its first free occurrence anywhere.
    """
    tags, after = ["O"] * len(words), 0
    for name, wanted in slots:
        length = len(wanted)
        places = [i for i in range(len(words) - length + 1) if words[i : i + length] == wanted]
        if not places:
            detail = f"'{shortened(' '.join(wanted))}' of slot {name} does not occur in the request."
            raise Unparsable("words-not-in-request", detail)
        free = [i for i in places if all(tag == "O" for tag in tags[i : i + length])]
        if not free:
            detail = f"'{shortened(' '.join(wanted))}' of slot {name} is already part of another slot."
            raise Unparsable("overlapping-slots", detail)
        start = next((i for i in free if i >= after), free[0])
        after = start + length
        tags[start:after] = [f"B-{name}"] + [f"I-{name}"] * (length - 1)
    return tags


def shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
