"""The CPU's own dropout drops what torch's drops on average, its attention is torch's, and nothing else is another."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from retort.students.cpu_kernels import LEAST_VALUES, LONGEST_CAST, CpuKernels, mask_of

SHAPE = (4, 8, 64, 64)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_has_mean_1(p: float) -> None:
    torch.manual_seed(0)
    mask = mask_of(torch.empty(400_000), p)
    kept = 1 - round(p * 2**16) / 2**16
    assert sorted(mask.unique().tolist()) == [0.0, pytest.approx(1 / kept)]
    share, tolerance = float((mask == 0).double().mean()), 4 * math.sqrt(p * (1 - p) / 400_000)
    assert share == pytest.approx(p, abs=tolerance)
    assert float(mask.double().mean()) == pytest.approx(1.0, abs=tolerance / kept)
    half = (mask != 0).double().view(2, -1)
    assert abs(float(torch.corrcoef(half)[0, 1])) < 4 / math.sqrt(200_000), "draws do not repeat"


def test_masks_differ_and_come_again_with_the_seed_whatever_the_threads() -> None:
    torch.manual_seed(3)
    first, second = mask_of(torch.empty(50_001), 0.1), mask_of(torch.empty(50_001), 0.1)
    assert 0.15 < float((first != second).double().mean()) < 0.21
    torch.set_num_threads(2)  # the fixture of this folder sets it back
    torch.manual_seed(3)
    assert torch.equal(mask_of(torch.empty(50_001), 0.1), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_multiplies_value_and_gradient_by_its_mask(dtype: torch.dtype) -> None:
    value = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    with CpuKernels():
        dropped = functional.dropout(value, 0.25)
        module = torch.nn.Dropout(0.25)(value)
    torch.manual_seed(1)
    mask = mask_of(value, 0.25)
    assert torch.equal(dropped, value * mask)
    assert not torch.equal(module, dropped)
    dropped.sum().backward()
    assert torch.equal(value.grad, mask)
    assert dropped.dtype == mask.dtype == dtype


@pytest.mark.parametrize("value", [torch.ones(LEAST_VALUES - 1), torch.ones(LEAST_VALUES)])
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (1.0, True), (0.3, False)])
def test_nothing_to_draw_is_as_without(value: Tensor, p: float, training: bool) -> None:
    with CpuKernels():
        assert torch.equal(functional.dropout(value, p, training), functional.dropout(value, p, training))
        assert torch.equal(torch.relu(value), value)


def test_small_tensors_are_left_to_torch() -> None:
    torch.manual_seed(0)
    expected = functional.dropout(torch.ones(100), 0.5)
    torch.manual_seed(0)
    with CpuKernels():
        assert torch.equal(functional.dropout(torch.ones(100), 0.5), expected)


def masks() -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    allowed = torch.rand(4, 1, 64, 64, generator=generator) > 0.3
    return [None, allowed | torch.eye(64, dtype=torch.bool), torch.randn(1, 8, 64, 64, generator=generator)]


@pytest.mark.parametrize("mask", masks(), ids=["none", "bool", "bias"])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_with_dropout_is_attention_on_average(mask: Tensor | None, scale: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(4, 8, 64, 16) / 2 for _ in range(3))
    options = {"attn_mask": mask, "scale": scale, "is_causal": mask is None}
    with CpuKernels():
        assert torch.equal(
            functional.scaled_dot_product_attention(query, key, value, **options),
            functional.scaled_dot_product_attention(query, key, value, dropout_p=0.0, **options),
        )
        draws = [
            functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1, **options) for _ in range(200)
        ]
    expected = functional.scaled_dot_product_attention(query, key, value, **options)
    errors = torch.stack(draws).mean(0) - expected
    spread = torch.stack(draws).std(0)
    assert float(spread.mean()) > 0.01
    # Standard errors of the mean; of 32,768 values, none is expected beyond 6.
    assert float((errors.abs() / (spread / math.sqrt(200) + 1e-6)).max()) < 6


@pytest.mark.parametrize("mask", masks(), ids=["none", "bool", "bias"])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_attention_of_short_texts_in_bf16_is_computed_in_fp32(
    mask: Tensor | None, scale: float | None, is_autocast: bool
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(4, 8, 64, 16).bfloat16().requires_grad_() for _ in range(3)]
    options = {"attn_mask": mask, "scale": scale, "is_causal": mask is None}
    expected = functional.scaled_dot_product_attention(*(one.float() for one in inputs), **options)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast), CpuKernels():
        got = functional.scaled_dot_product_attention(*inputs, **options)
    assert got.dtype == torch.bfloat16, "what follows is computed as before"
    assert torch.equal(got, expected.bfloat16()), "torch's own bf16 kernel rounds its shares, too"
    gradients = torch.autograd.grad(got.float().square().sum(), inputs)
    assert all(torch.allclose(one, other, rtol=0.02, atol=0.05) for one, other in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize(("length", "is_cast"), [(LONGEST_CAST, True), (LONGEST_CAST + 1, False)])
def test_attention_of_long_texts_is_left_to_torch(length: int, is_cast: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 16).bfloat16() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        plain = functional.scaled_dot_product_attention(query, key, value)
        with CpuKernels():
            own = functional.scaled_dot_product_attention(query, key, value)
    assert torch.equal(plain, own) is not is_cast
