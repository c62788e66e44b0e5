"""Which processors `auto` computes in bf16 on, and what bf16 means for a model that predicts."""

import math
from typing import Any

import pytest
import torch

from retort.models import device as devices
from retort.models.device import Device, cpu_gains_from_bf16, place_to_predict


@pytest.mark.parametrize(
    ("capabilities", "gains"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({"architecture": "aarch64", "cpu_name": "Neoverse-V2"}, False),
    ],
)
def test_bf16_is_for_amx_and_for_avx512_of_other_makers_than_intel(capabilities: dict[str, Any], gains: bool) -> None:
    assert cpu_gains_from_bf16(capabilities) is gains


@pytest.mark.parametrize(
    ("precision", "memory", "dtype"),
    [
        ("bf16", 1199, torch.bfloat16),
        ("bf16", 1201, torch.float32),
        ("bf16", math.inf, torch.float32),
        ("fp32", 1199, torch.float32),
    ],
)
def test_a_model_too_large_for_fp32_weights_and_copies_predicts_with_bf16_weights(
    precision: Any, memory: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "memory_bytes", lambda device: memory)
    model = torch.nn.Linear(10, 10, bias=False)
    place_to_predict(model, Device("cpu", precision, 1))
    assert model.weight.dtype == dtype
