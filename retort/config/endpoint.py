"""What an endpoint is sent beside a row's prompt: fields of the request's body, headers, the address's query."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator

from retort.config.base import Address, Text

ConstraintStyle = Literal["none", "vllm", "json-schema"]

_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_SECRET_NAME = re.compile(r"auth|key|token|secret|password|cookie|credential|signature|^sig$", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OF_THE_CONNECTION = {"host", "content-type", "content-length", "transfer-encoding", "connection", "accept-encoding"}
_SET_BY_RETORT = {
    "model": "model",
    "messages": "prompt",
    "temperature": "sampling.sampling_temperature",
    "top_p": "sampling.top_p",
    "max_tokens": "sampling.max_tokens",
    "max_completion_tokens": "sampling.max_tokens and token_limit_name",
    "n": "sampling.samples",
    "seed": "seed_name",
    "random_seed": "seed_name",
    "logprobs": "labels",
    "top_logprobs": "labels",
}
"""Fields of a request's body, with the field of the config that decides what they are."""
_CONSTRAINING = ("response_format", "structured_outputs")


def from_environment(text: str) -> str:
    """Validates a secret: one variable and nothing else."""
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be read from the environment, as ${NAME}, so that no key lies in a file or a log")
    return text


def is_secret_name(name: str) -> bool:
    """Whether a header or a parameter of this name holds a secret, as far as its name tells."""
    return _SECRET_NAME.search(name) is not None


def _without_secrets(url: str) -> str:
    try:
        pairs = parse_qsl(urlsplit(url).query)
    except ValueError:
        return url  # what is wrong with it is said where it is used
    for name, value in pairs:
        if is_secret_name(name) and not _VARIABLE.fullmatch(value):
            raise ValueError(
                f"the value of '{name}' must be read from the environment, as ${{NAME}}, so that no key lies in a file "
                "or a log"
            )
    return url


def _header_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _OF_THE_CONNECTION:
        raise ValueError("is no name of a header that may carry a key")
    return name


def _usable_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"headers: '{name}' is no name of an HTTP header")
        if name.lower() in _OF_THE_CONNECTION:
            raise ValueError(f"headers: Retort sets '{name}' itself; leave it out")
        if is_secret_name(name) and not _VARIABLE.search(value):
            raise ValueError(
                f"headers: the value of '{name}' must be read from the environment, as ${{NAME}}, so that no key lies "
                "in a file or a log"
            )
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("headers: a header is given twice, since case makes no difference in their names")
    return headers


def _usable_body(body: dict[str, Any]) -> dict[str, Any]:
    for name in body:
        if name in _SET_BY_RETORT:
            raise ValueError(f"body: Retort sets '{name}' itself; teacher.{_SET_BY_RETORT[name]} says what it is")
        if name in ("stream", "stream_options"):
            raise ValueError(f"body: '{name}' is not allowed, because answers are read whole")
    if not _is_json(body):
        raise ValueError("body: holds something that JSON has not (a date? put it in quotes)")
    if _VARIABLE.search(json.dumps(body)):
        raise ValueError(
            "body: ${...} is not expanded here, because the body is part of the store's keys; secrets go into headers"
        )
    return body


def _is_json(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_json(child) for name, child in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return value - value == 0  # neither infinite nor NaN
    return value is None or isinstance(value, str | int)


def check_constraining(body: Mapping[str, Any], style: ConstraintStyle) -> None:
    """Raises ValueError for a field of the body by which Retort constrains decoding itself."""
    if style != "none" and (taken := [name for name in _CONSTRAINING if name in body]):
        raise ValueError(
            f"body: with constraint_style: {style}, Retort sets '{taken[0]}' itself; leave one of them out"
        )


Url = Annotated[Address, AfterValidator(_without_secrets)]
HeaderName = Annotated[Text, AfterValidator(_header_name)]
Headers = Annotated[dict[Text, Address], AfterValidator(_usable_headers)]
Body = Annotated[dict[str, Any], AfterValidator(_usable_body)]
