"""A teacher's completions in a vendor's batch output format: one JSON object per line, matched on `custom_id`."""

from collections.abc import Iterator
from dataclasses import dataclass

from retort.data.answers import NoAnswer, answer_of, request_id_of
from retort.data.files import data_files
from retort.data.lines import json_fault, lines_of, place
from retort.io.strict_json import KeyTwice, json_value
from retort.records.base import RecordedCompletion


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line without a usable completion, kept with its raw text."""

    place: str
    raw: str
    reason: str
    """`not-json`, `key-twice`, `no-custom-id`, `http-<status>`, `error`, `no-choices`, `refused`,
    `a-request`."""
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
        line = json_value(raw)
    except (ValueError, RecursionError) as error:
        reason = "key-twice" if isinstance(error, KeyTwice) else "not-json"
        return BadLine(where, raw, reason, f"{where}: {json_fault(error)}")
    if not isinstance(line, dict):
        return BadLine(where, raw, "not-json", f"{where}: not a JSON object")
    example_id = request_id_of(line)
    if example_id is None:
        return BadLine(where, raw, "no-custom-id", f"{where}: no 'custom_id' (Gemini: 'key') that is a string")
    try:
        answer = answer_of(line)
    except NoAnswer as fault:
        return BadLine(where, raw, fault.reason, f"{where}: {fault.detail}", example_id)
    return RecordedCompletion(example_id, *answer)
