"""What a server's error says, in the forms of the vendors."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_MESSAGE_CHARACTERS = 300
"""How much of a server's response is shown in a sentence."""
_INVALID_KEY = re.compile(rb"api[_ ]key[_ ](invalid|not[_ ]valid)|invalid[_ ]api[_ ]key", re.IGNORECASE)
_PARAMETER_CODES = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden")
INSTEAD = {
    "max_tokens": "set teacher.token_limit_name: max_completion_tokens",
    "max_completion_tokens": "set teacher.token_limit_name: max_tokens",
    "temperature": "set teacher.sampling.sampling_temperature: null, so that it is not sent",
    "top_p": "set teacher.sampling.top_p: 1, so that it is not sent",
    "seed": "set teacher.seed_name: null, so that it is not sent",
    "random_seed": "set teacher.seed_name: null, so that it is not sent",
    "n": "set teacher.samples_per_request: 1, so that it is not sent",
    "response_format": "set another teacher.constraint_style",
    "structured_outputs": "set another teacher.constraint_style",
    "logprobs": "use teacher.labels: hard",
    "top_logprobs": "use teacher.labels: hard",
}
"""What to do about a field of the body that a model refuses."""


def server_message(raw: bytes) -> str:
    """The server's error message, as part of a sentence."""
    text = " ".join(re.sub(r"<[^<>]*>", " ", _error_message(raw.decode(errors="replace"))).split())
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[:MAX_MESSAGE_CHARACTERS] + " ..."


def _error_message(text: str) -> str:
    """The message in an error's JSON, in any of the usual fields; otherwise the whole text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(value, dict | list) and value:
        if isinstance(value, list):  # Gemini's are in a list
            value = value[0]
            continue
        value = value.get("error") or value.get("message") or value.get("detail") or json.dumps(value)
    return value if isinstance(value, str) else text


def is_about_key(raw: bytes) -> bool:
    """Whether an error says that the API key is none."""
    return _INVALID_KEY.search(raw) is not None


def refused_field(raw: bytes, body: Mapping[str, Any]) -> str | None:
    """The field of the body that an error says the model does not take, if it is one that the config decides on: no row
    is to blame for that."""
    try:
        error = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    for fault in _faults(error):
        place = fault.get("loc")
        field = place[-1] if isinstance(place, list) and place else fault.get("param")
        code = fault.get("code") or fault.get("type")
        if code in _PARAMETER_CODES and isinstance(field, str) and (field in INSTEAD or field in body):
            return field
    return None


def _faults(error: object, depth: int = 6) -> Iterator[Mapping[str, Any]]:
    """The objects in an error, wherever a vendor puts them, so many levels deep."""
    if isinstance(error, dict):
        yield error
        error = list(error.values())
    if isinstance(error, list) and depth:
        for part in error:
            yield from _faults(part, depth - 1)
