"""The compute device: which one to use, at which precision, with how many threads."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from retort.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    name: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    threads: int
    """CPU threads that this process uses."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.name, torch.bfloat16, enabled=self.precision == "bf16")

    def describe(self) -> dict[str, str | int]:
        title = torch.cuda.get_device_name() if self.name == "cuda" else torch.cpu.get_capabilities()["cpu_name"]
        return {"device": self.name, "device_name": str(title), "precision": self.precision, "threads": self.threads}


def choose_device(wanted: str, precision: str, shares: int) -> Device:
    """The device for one of `shares` processes that share the machine; each gets an equal share of the cores.

    The share depends on the plan and never on the load, so a resumed run adds floats in the same order.
    Raises ConfigError if a GPU is requested and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError("execution.device = 'cuda', but this machine has no GPU that torch can use; use auto or cpu")
    name: Literal["cpu", "cuda"] = "cuda" if has_gpu and wanted != "cpu" else "cpu"
    threads = max(1, (os.cpu_count() or 1) // shares)
    torch.set_num_threads(threads)
    if precision == "auto":
        precision = "bf16" if _computes_bf16(name) else "fp32"
    return Device(name, "bf16" if precision == "bf16" else "fp32", threads)


def _computes_bf16(name: str) -> bool:
    """Whether bf16 is faster than fp32. Decided from the hardware's description, never by timing: a resumed run must
    make the same choice."""
    if name == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_gains_from_bf16(torch.cpu.get_capabilities())


def cpu_gains_from_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU computes faster in bf16; `capabilities` are as torch reports them. Emulated bf16 is three times
    slower than fp32.

    AMX multiplies bf16 much faster than AVX512 multiplies fp32. AVX512's own bf16 instructions have twice the
    throughput of fp32 on other vendors' processors; on Intel's, a matrix product runs at half the fp32 speed.
    """
    if capabilities.get("amx_bf16"):
        return True
    return bool(capabilities.get("avx512_bf16")) and "intel" not in str(capabilities.get("cpu_name")).lower()


def memory_bytes(device: Device) -> float:
    """The memory of a GPU, whatever holds some of it now: what is decided by it, a resumed run decides alike."""
    return torch.cuda.get_device_properties().total_memory if device.name == "cuda" else math.inf


def place_to_predict(model: torch.nn.Module, device: Device) -> None:
    """Moves a trained model to the device. Its weights stay fp32, of which autocast makes copies in bf16; if the two
    take more than half of a GPU, which also holds what is computed, the weights become bf16 themselves."""
    room = memory_bytes(device) / 2
    if device.precision == "bf16" and room < math.inf:  # a graph of ONNX, which a CPU alone computes, has no parameters
        weights = sum(parameter.numel() for parameter in model.parameters())
        if (4 + 2) * weights > room:
            model.to(torch.bfloat16)
    model.to(device.name).eval()


def random_states(device: Device) -> dict[str, Tensor]:
    """States of the random generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.name == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
