"""Which processors `auto` computes in bf16 on."""

from typing import Any

import pytest

from retort.models.device import cpu_gains_from_bf16


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
