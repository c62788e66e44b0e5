"""Rationales: a teacher writes why before it writes the label, both in one JSON object (`teacher.rationales`).

A label that is written after its reason is better than one without (chain of thought, Wei et al. 2022), and a student
learns from both (contextualization distillation, arXiv 2402.01729; distilling step by step, arXiv 2305.02301).
"""

import json
import re
from dataclasses import replace
from itertools import islice
from typing import Any

from retort.config.teachers import LlmTeacherConfig
from retort.problems import Constraint, Problem
from retort.problems.turns import TOOL_CALLS
from retort.records.base import ParseFailure
from retort.teachers.endpoint.structured import label_schema, wrapped
from retort.teachers.salvage import THOUGHTS, Reading, parse_completion

RATIONALE, LABEL = "rationale", "label"
INSTRUCTION = (
    f'Do not write the answer alone, but JSON on one line: first, in "{RATIONALE}", why it is the answer, in one or '
    f'two sentences; then, in "{LABEL}", the answer as described above: {{"{RATIONALE}": "...", "{LABEL}": "..."}}'
)
_DECODER = json.JSONDecoder(strict=False)
_OBJECT = re.compile(r"\{\s*\"")
MOST_OBJECTS = 20
"""Places where the object may begin: a completion of nothing but braces would take minutes."""
_ENDS = ("filtered", "interrupted", "tool-calls", "cut-short")
"""Why there is no label, if what ended the completion says so."""


def with_rationale(problem: Problem, text: str, rendered: str, rationale: str) -> str:
    """What a teacher is shown as a demonstration, with the label as it is rendered."""
    constraint = problem.constraint(text)
    is_json = constraint is not None and constraint.json_schema is not None
    return json.dumps({RATIONALE: rationale, LABEL: json.loads(rendered) if is_json else rendered}, ensure_ascii=False)


def constraint_of(problem: Problem, teacher: LlmTeacherConfig, text: str) -> Constraint | None:
    """What the teacher's completion for `text` may be; None: anything. Beside a rationale, no grammar holds a label."""
    constraint = problem.constraint(text)
    if not teacher.rationales:
        return constraint
    label = (None if constraint is None else label_schema(constraint)) or {"type": "string"}
    return Constraint(json_schema=wrapped(label, {RATIONALE: {"type": "string"}}))


def parse_reasoned(
    problem: Problem, text: str, completion: str, finish_reason: str | None = None
) -> tuple[Reading, str | None]:
    """The label of a completion, see `parse_completion`, and its rationale, None if there is no label.

    Adds the reason code `no-rationale`, for what is no object with both.
    """
    found = _object(THOUGHTS.sub("", completion))
    if found is None:
        nothing = parse_completion(problem, text, "", finish_reason).outcome
        if isinstance(nothing, ParseFailure) and nothing.reason in _ENDS:
            return Reading(replace(nothing, raw=completion)), None
        detail = f'It is no JSON object with a text in "{RATIONALE}" and a "{LABEL}".'
        return Reading(ParseFailure("no-rationale", detail, completion)), None
    rationale, label = found
    # The object is whole, so what is in it was not cut.
    ended_by = None if finish_reason in ("length", TOOL_CALLS) else finish_reason
    reading = parse_completion(problem, text, label, ended_by)
    if isinstance(reading.outcome, ParseFailure):
        return Reading(replace(reading.outcome, raw=completion)), None
    return reading, rationale


def _object(completion: str) -> tuple[str, str] | None:
    """The rationale and the label, as a text, of the first object that has both."""
    for start in islice(_OBJECT.finditer(completion), MOST_OBJECTS):
        try:
            value: Any = _DECODER.raw_decode(completion, start.start())[0]
            if not isinstance(value, dict) or LABEL not in value or not isinstance(value.get(RATIONALE), str):
                continue
            label = value[LABEL] if isinstance(value[LABEL], str) else json.dumps(value[LABEL], ensure_ascii=False)
        except (ValueError, RecursionError):
            continue
        rationale = value[RATIONALE].strip()
        if rationale and _is_unicode(rationale + label):
            return rationale, label
    return None


def _is_unicode(text: str) -> bool:
    """Whether it can be stored: JSON may escape half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
