"""A real vLLM teacher: its environment, its settings for a tiny model, and its requests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort.config import VllmConfig
from retort.teachers.requests import CompletionRequest, Prompt, Turn

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-teacher" / "bin" / "python"
CONTEXT = 2048
DEMONSTRATIONS = [(f"Input: play some jazz number {number}\nOutput:", "[IN:PLAY_MUSIC ]") for number in range(8)]
SHARED = (
    Turn("system", "Label the request."),
    *(turn for item, label in DEMONSTRATIONS for turn in (Turn("user", item), Turn("assistant", label))),
)


def config_for(model: Path, **changes: Any) -> VllmConfig:
    given = {"model": str(model), "dtype": "float32", "python": str(PYTHON), "max_sequences": 64, "seed": 3}
    return VllmConfig.model_validate({"kind": "vllm", **given, **changes})


def new_request(number: int | str, text: str = "play westbam", **changes: Any) -> CompletionRequest:
    prompt = Prompt(SHARED, f"Input: {text}\nOutput:")
    return CompletionRequest(**{"key": str(number).encode(), "prompt": prompt, "max_tokens": 12, **changes})


def endless() -> Iterator[CompletionRequest]:
    number = 0
    while True:
        number += 1
        yield new_request(number, f"song {number}", max_tokens=1 + number % 64)


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie counts as gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
