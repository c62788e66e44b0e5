"""A teacher's completions in the OpenAI batch output format: one JSON object per line, matched on `custom_id`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retort.data.files import data_files
from retort.data.lines import json_fault, lines_of, place
from retort.problems.turns import ended_by, said
from retort.records.base import RecordedCompletion


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line without a usable completion, kept with its raw text."""

    place: str
    raw: str
    reason: str
    """`not-json`, `no-custom-id`, `http-<status>`, `error`, `no-choices`."""
    detail: str
    """One human-readable sentence."""
    example_id: str | None = None
    """The example it was meant for, if the line says so."""


def read_completions(path: str, endpoint_url: str | None = None) -> Iterator[RecordedCompletion | BadLine]:
    """Yield an outcome for every non-blank line, in order.

    A bad line does not stop the reading, but a missing, truncated or damaged file raises DataError.
    """
    for file in data_files(path, endpoint_url):
        for number, line in lines_of(file):
            if line.strip():
                yield _outcome(place(file, number), line.decode(errors="replace").rstrip("\r\n"))


def _outcome(where: str, raw: str) -> RecordedCompletion | BadLine:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return BadLine(where, raw, "not-json", f"{where}: {json_fault(error)}")
    if not isinstance(line, dict):
        return BadLine(where, raw, "not-json", f"{where}: not a JSON object")
    example_id = line.get("custom_id")
    if not isinstance(example_id, str) or not example_id:
        return BadLine(where, raw, "no-custom-id", f"{where}: no 'custom_id' that is a string")
    fault = _fault(line)
    if fault is not None:
        reason, detail = fault
        return BadLine(where, raw, reason, f"{where}: {detail}", example_id)
    return _completion(example_id, line["response"]["body"])


def _fault(line: dict[str, Any]) -> tuple[str, str] | None:
    """(reason, detail) if a line with an id has no completion, else None."""
    response = line.get("response")
    status = response.get("status_code", 200) if isinstance(response, dict) else None
    if status is not None and status != 200:
        return f"http-{status}", f"the request was answered with HTTP status {status}"
    if line.get("error"):
        return "error", f"the request failed: {json.dumps(line['error'], ensure_ascii=False):.200}"
    body = response.get("body") if isinstance(response, dict) else None
    choice = _first_choice(body)
    if choice is None or _content(choice) is None:
        return "no-choices", "the response holds no text"
    return None


def _first_choice(body: object) -> dict[str, Any] | None:
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _content(choice: dict[str, Any]) -> str | None:
    """The text of a chat completion or of a plain one."""
    message = choice.get("message")
    text = said(message) if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None


def _completion(example_id: str, body: dict[str, Any]) -> RecordedCompletion:
    choice = _first_choice(body) or {}
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    finish_reason = choice.get("finish_reason")
    return RecordedCompletion(
        example_id=example_id,
        text=_content(choice) or "",
        finish_reason=ended_by(choice.get("message"), finish_reason if isinstance(finish_reason, str) else None),
        prompt_tokens=_count(tokens.get("prompt_tokens")),
        completion_tokens=_count(tokens.get("completion_tokens")),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
