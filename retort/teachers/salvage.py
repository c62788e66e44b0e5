"""Reads a completion, asked for or recorded: the label in it, if there is one.

Extracts the label from a completion that says more than the label. Deliberately small: whatever would take guessing is
requested again instead. A model's reasoning (`<think> ... </think>`) is never part of a label; what remains is the
label if it parses. Otherwise the first of these candidates that parses is the label:
1. the text inside a code fence or quotes;
2. the first line that is not empty, and what follows a word and a colon there (`Label: correct`);
3. the text from the first bracket that begins a line or follows a colon;
4. the text from the first to the last bracket;
and if none does, that of 1. to 3. and the whole of which the problem's repair leaves most to the completion itself.

Of a completion that was cut at its token limit only what the problem trusts is read, see `Problem.uncut`.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from retort.problems import Problem
from retort.problems.chat import Chat
from retort.problems.turns import TOOL_CALLS, words_beside_calls
from retort.records.base import Label, ParseFailure
from retort.teachers.requests import INTERRUPTED

THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)
_OPEN_THOUGHTS = "<think>"
_FENCE = re.compile(r"```\w*\n?(.*?)```", re.DOTALL)
_LEAD = re.compile(r"^\w+:\s*(.+)$")
_BRACKETS = re.compile(r"(?:^|[\n:])\s*([\[(].*)", re.DOTALL)
_QUOTES = "\"'`*"


class Reading(NamedTuple):
    """What a completion says."""

    outcome: Label | ParseFailure
    is_salvaged: bool = False
    """Whether the label had to be extracted or repaired."""
    covered: float = 1.0
    """For a label: the share in [0, 1] of the text's words that the completion accounts for, see `Mended`."""

    @property
    def counted(self) -> tuple[str, ...]:
        """What reports count it as: `salvaged`, and also `cut` if it does not account for the whole text."""
        facts = {"salvaged": self.is_salvaged, "cut": self.covered < 1}
        return tuple(name for name, is_so in facts.items() if is_so)


def parse_completion(problem: Problem, text: str, completion: str, finish_reason: str | None = None) -> Reading:
    """The label, or why there is none, with the unmodified completion.

    Adds the reason codes `filtered`, `interrupted`, `tool-calls`, `cut-short` and `only-thoughts` to those of the
    problem's parser.
    """
    if finish_reason == "content_filter":
        return Reading(ParseFailure("filtered", "A content filter ended the completion.", completion))
    if finish_reason in INTERRUPTED:
        return Reading(ParseFailure("interrupted", f"The server broke it off ({finish_reason}).", completion))
    calls = finish_reason == TOOL_CALLS
    if calls and not isinstance(problem, Chat):
        words = words_beside_calls(completion)
        if not words.strip():
            return Reading(ParseFailure("tool-calls", "It calls tools, and only a chat's label is a call.", completion))
        completion, calls = words, False
    is_cut = finish_reason == "length"
    # Calls are JSON, without thoughts: what looks like some is part of an argument.
    visible = completion if calls else THOUGHTS.sub("", completion)
    if visible.lstrip().startswith(_OPEN_THOUGHTS):
        failure = ParseFailure("only-thoughts", f"{_OPEN_THOUGHTS} is not closed.", completion)
        return Reading(_cut_short(failure) if is_cut else failure)
    certain = problem.uncut(visible) if is_cut else visible
    outcome = problem.parse(text, certain)
    if not isinstance(outcome, ParseFailure):
        return Reading(outcome, is_salvaged=certain != completion)
    # In a chat every text is a label, so a part of a call that is none would become one.
    if not isinstance(problem, Chat) and (salvaged := _salvaged(problem, text, certain)):
        return salvaged
    failure = replace(outcome, raw=completion)
    return Reading(_cut_short(failure) if is_cut else failure)


def _cut_short(failure: ParseFailure) -> ParseFailure:
    detail = f"The completion reached its token limit; what is certain of it holds no label: {failure.detail}"
    return ParseFailure("cut-short", detail, failure.raw)


def _salvaged(problem: Problem, text: str, completion: str) -> Reading | None:
    candidates = list(dict.fromkeys(_candidates(completion)))
    for candidate in (*candidates, *_between_brackets(completion)):
        label = problem.parse(text, candidate)
        if not isinstance(label, ParseFailure):
            return Reading(label, is_salvaged=True)
    best = None
    for candidate in dict.fromkeys((completion, *candidates)):
        mended, covered = problem.mend(text, candidate)
        label = problem.parse(text, mended)
        if not isinstance(label, ParseFailure) and (best is None or covered > best.covered):
            best = Reading(label, is_salvaged=True, covered=covered)
    return best


def _candidates(completion: str) -> Iterator[str]:
    if fenced := _FENCE.search(completion):
        yield fenced[1]
    yield completion.strip().strip(_QUOTES)
    first = next((line.strip() for line in completion.splitlines() if line.strip()), "")
    yield first
    if lead := _LEAD.match(first):
        yield lead[1].strip(_QUOTES + " ")
    if brackets := _BRACKETS.search(completion):
        yield brackets[1]


def _between_brackets(completion: str) -> Iterator[str]:
    """Not repaired: what precedes may be a part of the label whose bracket is missing."""
    for opening, closing in ("[]", "()"):
        start, end = completion.find(opening), completion.rfind(closing)
        if 0 <= start < end:
            yield completion[start : end + 1]
