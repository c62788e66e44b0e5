"""Classifies why an engine did not start or died. Imports only the standard library, since both sides use it."""

import re
from collections.abc import Iterable
from typing import Any, Literal

Phase = Literal["config", "start", "work"]
"""config: vLLM reads the model's config and its options. start: it loads and compiles. work: it serves requests."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|less than desired|less than requested memory for kv|can(no|')t allocate memory",
    re.IGNORECASE,
)
_FIELDS = {
    "max_length": r"max_model_len|max seq len|maximum model length",
    "memory_share": r"No available memory for the cache blocks",
    "quantization": r"quantiz",
    "pipeline_parallel": r"pipeline.parallel",
    "tensor_parallel": r"tensor.parallel|attention heads|divisible by",
    "dtype": r"\bdtype\b|bfloat16|float16",
}
"""Fields of the teacher's config, and patterns of vLLM's error messages about them."""
_MODEL = re.compile(
    r"runner|architecture|not supported for now|local folder|valid model|config\.json|model_type|couldn't connect"
    r"|repository|safetensors|weights|tokenizer|can't load|unrecognized model|revision|recognize|header",
    re.IGNORECASE,
)
_RAISED = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception): .+")
_HEARSAY = re.compile(r"Engine core initialization failed|root cause|background process")
_MOST_CHARACTERS = 400


class BadTemplate(Exception):
    """The model's chat template cannot take the turns."""


def fatal(error: BaseException, phase: Phase) -> dict[str, str]:
    """The engine's last message to Retort: `reason` and `field` as in `classify`, and `detail`, one line."""
    detail = describe(error)
    reason, field = classify(detail)
    if isinstance(error, BadTemplate):
        reason, field = "model", ""
    elif phase == "work" and reason != "out-of-memory":
        reason, field = "engine", ""
    elif phase == "config" and reason == "engine":
        reason = "config"
    return {"reason": reason, "field": field, "detail": detail}


def classify(text: str) -> tuple[str, str]:
    """(reason, field) for an error text: `out-of-memory`; `config`, with the field of the teacher's config that is to
    blame; `model`; or `engine` if the cause is unknown."""
    if _OUT_OF_MEMORY.search(text):
        return "out-of-memory", ""
    for field, pattern in _FIELDS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return "config", field
    return ("model" if _MODEL.search(text) else "engine"), ""


def is_other_kind(detail: str) -> bool:
    """Whether the error says that the model is not a causal language model."""
    return bool(re.search("runner|architecture|decoder|not supported for now", detail))


def describe(error: BaseException) -> str:
    """An exception as one line; for pydantic's, only the first reason, since the full text repeats all settings."""
    listed: Any = getattr(error, "errors", None)
    if callable(listed):
        return str(listed()[0]["msg"]).removeprefix("Value error, ")[:_MOST_CHARACTERS]
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = "" if isinstance(error, BadTemplate) else type(error).__name__
    return ": ".join(part for part in (name, first) if part)[:_MOST_CHARACTERS]


def last_exception(lines: Iterable[str]) -> str:
    """The last exception in a log, as one line, or the last one about memory if there is any; "" if there is none.
    Exceptions that only report the failure of another process are ignored."""
    found = [match[0].strip()[:_MOST_CHARACTERS] for line in lines if (match := _RAISED.search(line))]
    own = [text for text in found if not _HEARSAY.search(text)]
    memory = [text for text in own if _OUT_OF_MEMORY.search(text)]
    return (memory or own or [""])[-1]
