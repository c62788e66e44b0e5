"""Extracts the label from a completion that says more than the label. Deliberately small: whatever would take guessing
is requested again instead.

The first of these candidates that parses is the label:
1. the completion as it is;
2. the completion without the model's reasoning (`<think> ... </think>`);
3. the text inside a code fence or quotes;
4. the first line that is not empty, and what follows a word and a colon there (`Label: correct`);
5. the text from the first to the last bracket;
6. any of the above as repaired by the problem.
"""

import re
from collections.abc import Iterator

from retort.problems import Problem
from retort.records.base import Label, ParseFailure

_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)
_FENCE = re.compile(r"```\w*\n?(.*?)```", re.DOTALL)
_LEAD = re.compile(r"^\w+:\s*(.+)$")
_QUOTES = "\"'`*"


def parse_completion(problem: Problem, text: str, completion: str) -> tuple[Label | ParseFailure, bool]:
    """The label, or the parse failure of the unmodified completion; and whether the label had to be salvaged."""
    outcome = problem.parse(text, completion)
    if not isinstance(outcome, ParseFailure):
        return outcome, False
    candidates = list(dict.fromkeys(_candidates(completion)))
    for candidate in (*candidates, *(problem.mend(text, candidate) for candidate in (completion, *candidates))):
        label = problem.parse(text, candidate)
        if not isinstance(label, ParseFailure):
            return label, True
    return outcome, False


def _candidates(completion: str) -> Iterator[str]:
    visible = _THOUGHTS.sub("", completion)
    yield visible
    if fenced := _FENCE.search(visible):
        yield fenced[1]
    yield visible.strip().strip(_QUOTES)
    first = next((line.strip() for line in visible.splitlines() if line.strip()), "")
    yield first
    if lead := _LEAD.match(first):
        yield lead[1].strip(_QUOTES + " ")
    for opening, closing in ("[]", "()"):
        start, end = visible.find(opening), visible.rfind(closing)
        if 0 <= start < end:
            yield visible[start : end + 1]
