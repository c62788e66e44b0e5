"""Requests and completions as OpenAI batch files, for vendors' discounted overnight batches and vLLM's run-batch.

A line's `custom_id` is the request's key in hexadecimal. Several samples have one line each, named `<key>-<sample>`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from retort.config import EndpointConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data.completions import BadLine, read_completions
from retort.errors import ConfigError
from retort.problems import Constraint
from retort.teachers.endpoint.chat import BodyWriter
from retort.teachers.endpoint.structured import unwrap_label
from retort.teachers.requests import Completion, CompletionRequest

NO_SOFT_LABELS = "labels: soft does not go through batch files; use labels: hard, or ask the endpoint"
_ID = re.compile(r"([0-9a-f]{32})(?:-(0|[1-9][0-9]{0,8}))?")


def write_requests(config: LlmTeacherConfig, requests: Iterable[CompletionRequest], stream: BinaryIO) -> int:
    """Write one line per sample of each request; returns the number of lines.

    Raises ConfigError for requests with verbalizers, since batch output files are read without log-probabilities.
    """
    bodies, lines, path = BodyWriter.of(config), 0, _path(config)
    for request in requests:
        if request.verbalizers:
            raise ConfigError(NO_SOFT_LABELS)
        for sample in request.samples:
            name = custom_id(request.key, sample, alone=request.samples == (0,))
            start = f'{{"custom_id": "{name}", "method": "POST", "url": "{path}", "body": '
            stream.write(start.encode() + bodies.body(request, (sample,)) + b"}\n")
            lines += 1
    return lines


def read_answers(
    address: str, endpoint_url: str | None, wrapped: Constraint | None = None
) -> Iterator[Completion | BadLine]:
    """The completions in batch output files, in order; `wrapped` is the constraint under which labels come in a field
    of an object, see `wrapping`.

    A line without a usable completion becomes a BadLine, with one of the reasons of `read_completions`, `unknown-id`
    (a custom_id that no export wrote) or `duplicate` (not the first completion of its custom_id). Whether a key was
    ever requested is not known here. Keeps about 100 bytes in memory per completion. Raises DataError for a file that
    is missing, truncated or damaged.
    """
    seen: set[bytes] = set()
    for line in read_completions(address, endpoint_url):
        if isinstance(line, BadLine):
            yield line
            continue
        match = _ID.fullmatch(line.example_id)
        key, sample = (bytes.fromhex(match[1]), int(match[2] or 0)) if match else (b"", 0)
        fault = _fault(line.example_id, key, key + sample.to_bytes(4, "big") in seen)
        if fault:
            reason, detail = fault
            yield BadLine(address, line.text, reason, f"{address}: {detail}", line.example_id)
            continue
        seen.add(key + sample.to_bytes(4, "big"))
        text = unwrap_label(line.text, wrapped) if wrapped else line.text
        yield Completion(key, sample, text, line.finish_reason, line.prompt_tokens, 0, line.completion_tokens)


def _path(config: LlmTeacherConfig) -> str:
    """Where a batch is answered; Azure wants it without the version if its deployments' addresses have none."""
    is_deployment = isinstance(config, EndpointConfig) and "/openai/deployments/" in config.url
    return "/chat/completions" if is_deployment else "/v1/chat/completions"


def custom_id(key: bytes, sample: int, *, alone: bool) -> str:
    return key.hex() if alone else f"{key.hex()}-{sample}"


def _fault(name: str, key: bytes, seen: bool) -> tuple[str, str] | None:
    """(reason, detail) for a completion that is unknown or a duplicate; None for a new one."""
    if not key:
        return "unknown-id", f"custom_id '{name[:80]}' was not written by retort batch export"
    return ("duplicate", f"custom_id '{name}' was answered before; the first answer counts") if seen else None
