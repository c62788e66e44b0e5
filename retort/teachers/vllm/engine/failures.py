"""Why an engine did not start or died, from what it said. Imports the standard library alone: both sides read it."""

import re
from collections.abc import Iterable
from typing import Any, Literal

Phase = Literal["config", "start", "work"]
"""vLLM reads the model's config and ours; it loads and compiles; it answers."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|less than desired|less than requested memory for kv|can(no|')t allocate memory",
    re.IGNORECASE,
)
_FIELDS = {
    "max_length": r"max_model_len|max seq len|maximum model length",
    "memory_share": r"No available memory for the cache blocks",
    "quantization": r"quantiz",
    "tensor_parallel": r"tensor.parallel|attention heads|divisible by",
    "dtype": r"\bdtype\b|bfloat16|float16",
}
"""Of the teacher's config, and how vLLM speaks of them."""
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
    """What Retort is told before the engine ends: `reason` and `field` as `classify` gives them, `detail` one line."""
    detail = told(error)
    reason, field = classify(detail)
    if isinstance(error, BadTemplate):
        reason, field = "model", ""
    elif phase == "work" and reason != "out-of-memory":
        reason, field = "engine", ""
    elif phase == "config" and reason == "engine":
        reason = "config"
    return {"reason": reason, "field": field, "detail": detail}


def classify(text: str) -> tuple[str, str]:
    """(reason, field): `out-of-memory`; `config` with the field of the teacher's config that it is about; `model`; or
    `engine` where nothing tells."""
    if _OUT_OF_MEMORY.search(text):
        return "out-of-memory", ""
    for field, pattern in _FIELDS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return "config", field
    return ("model" if _MODEL.search(text) else "engine"), ""


def is_other_kind(detail: str) -> bool:
    """Whether what was told of a model is that it is no causal language model."""
    return bool(re.search("runner|architecture|decoder|not supported for now", detail))


def told(error: BaseException) -> str:
    """An exception as one line. Of pydantic's the first reason, without the wrapping, which repeats all settings."""
    listed: Any = getattr(error, "errors", None)
    if callable(listed):
        return str(listed()[0]["msg"]).removeprefix("Value error, ")[:_MOST_CHARACTERS]
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = "" if isinstance(error, BadTemplate) else type(error).__name__
    return ": ".join(part for part in (name, first) if part)[:_MOST_CHARACTERS]


def raised(lines: Iterable[str]) -> str:
    """The exception that a log ends with, as one line, or before it one about memory; "" where there is none. What
    another process only heard of does not count."""
    found = [match[0].strip()[:_MOST_CHARACTERS] for line in lines if (match := _RAISED.search(line))]
    own = [text for text in found if not _HEARSAY.search(text)]
    memory = [text for text in own if _OUT_OF_MEMORY.search(text)]
    return (memory or own or [""])[-1]
