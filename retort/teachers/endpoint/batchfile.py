"""Questions and answers as OpenAI batch files: for vendors that answer overnight for less, and vLLM's run-batch.

A line's `custom_id` is the question's key in hexadecimal; of several samples, each has its own line, `<key>-<sample>`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from retort.config import EndpointConfig, VllmConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data.completions import BadLine, read_completions
from retort.errors import ConfigError
from retort.teachers.endpoint.chat import Bodies, ConstraintStyle, unwrapped
from retort.teachers.requests import Completion, CompletionRequest

_ID = re.compile(r"([0-9a-f]{32})(?:-(0|[1-9][0-9]{0,8}))?")


def write_requests(config: LlmTeacherConfig, questions: Iterable[CompletionRequest], stream: BinaryIO) -> int:
    """One line for each sample of each question; returns how many.

    Raises ConfigError for questions with verbalizers: what is read back holds no log-probabilities.
    """
    bodies, lines = Bodies(config.model, constraint_style(config)), 0
    for question in questions:
        if question.verbalizers:
            raise ConfigError("labels: soft does not go through batch files; use labels: hard, or ask the endpoint")
        for sample in question.samples:
            name = custom_id(question.key, sample, alone=question.samples == (0,))
            start = f'{{"custom_id": "{name}", "method": "POST", "url": "/v1/chat/completions", "body": '
            stream.write(start.encode() + bodies.body(question, (sample,)) + b"}\n")
            lines += 1
    return lines


def read_answers(
    address: str, endpoint_url: str | None, style: ConstraintStyle = "none"
) -> Iterator[Completion | BadLine]:
    """The answers in batch output files, in their order; `style` is the one that the requests were written with.

    What is no answer is told as a BadLine: the reasons of `read_completions`; `unknown-id`, a custom_id that no export
    wrote; `duplicate`, after the first answer to the same one. Whether a key was ever asked for is not known here.
    Keeps about 100 bytes for each answer. Raises DataError for a file that is missing, cut or damaged.
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
        text = unwrapped(line.text) if style == "json-schema" else line.text
        yield Completion(key, sample, text, line.finish_reason, line.prompt_tokens, 0, line.completion_tokens)


def constraint_style(config: LlmTeacherConfig) -> ConstraintStyle:
    """How a batch tells whoever answers it what a completion may be."""
    if isinstance(config, EndpointConfig):
        return config.constraint_style
    return "vllm" if isinstance(config, VllmConfig) else "none"


def custom_id(key: bytes, sample: int, *, alone: bool) -> str:
    return key.hex() if alone else f"{key.hex()}-{sample}"


def _fault(name: str, key: bytes, seen: bool) -> tuple[str, str] | None:
    """(reason, detail) of a completion that is no new answer."""
    if not key:
        return "unknown-id", f"custom_id '{name[:80]}' was not written by retort batch export"
    return ("duplicate", f"custom_id '{name}' was answered before; the first answer counts") if seen else None
