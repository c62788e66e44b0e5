"""A teacher's completions in the OpenAI batch output format, one JSON object on each line, matched on `custom_id`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retort.data.files import data_files
from retort.data.lines import json_fault, lines_of, place
from retort.records.base import RecordedCompletion


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no completion: a typed outcome, kept with its raw text."""

    place: str
    raw: str
    reason: str
    """`not-json`, `no-custom-id`, `http-<status>`, `error`, `no-choices`."""
    detail: str
    """One sentence for people."""
    example_id: str | None = None
    """Where the line says whose completion it should have been."""


def read_completions(path: str, endpoint_url: str | None = None) -> Iterator[RecordedCompletion | BadLine]:
    """Every line that is not blank, in order. One bad line never ends the reading; a missing, cut or damaged
    file raises DataError."""
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
    """(reason, detail) of a line that has an id but no completion."""
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
    """Of a chat completion, or of a plain one."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None


def _completion(example_id: str, body: dict[str, Any]) -> RecordedCompletion:
    choice = _first_choice(body) or {}
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    finish_reason = choice.get("finish_reason")
    return RecordedCompletion(
        example_id=example_id,
        text=_content(choice) or "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        prompt_tokens=_count(tokens.get("prompt_tokens")),
        completion_tokens=_count(tokens.get("completion_tokens")),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
