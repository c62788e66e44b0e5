"""What training on a CPU computes otherwise than torch, because torch is slow at it.

Dropout: of a small T5's training, torch spends a quarter on random numbers, one draw per value. Here one draw of SFC64
(the fastest of numpy's generators, which passes the usual batteries of tests) decides on four values, and a mask is
made by numpy's vectorized comparison: a tenth of the time, and less in bf16.

Attention in bf16: of a small encoder's training on short texts, the backward pass of torch's fused kernel takes a
quarter. The same kernel in fp32, casts included, takes a quarter of that time at 32 tokens, half at 128, nine tenths at
256, and more from 1024 on (forward and backward, on one thread of an EPYC that computes bf16 by AVX512).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LONGEST_CAST = 256
"""Tokens of the longest texts whose attention is computed in fp32 instead of bf16."""
LEAST_VALUES = 2**14
"""Smaller tensors are left to torch: seeding a generator takes as long as they do."""
_LEVELS = 2**16
"""A value is dropped with a probability that is a multiple of 1 / _LEVELS."""


class CpuKernels(TorchFunctionMode):
    """Inside this context, dropout and attention with dropout on a CPU draw their masks by `mask_of`, and attention
    of short texts without dropout is computed in fp32 where bf16 is asked for."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = _OWN.get(func)
        return (own or func)(*args, **(kwargs or {}))


def mask_of(like: Tensor, p: float) -> Tensor:
    """A tensor of the same shape and dtype, each of whose values is 0 with probability `p`, rounded to 16 bits, and
    else the reciprocal of the probability of that, so that the mean is 1. Seeded by torch's generator."""
    dropped, count = round(p * _LEVELS), like.numel()
    generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    drawn = generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
    kept, reciprocal = drawn >= np.uint16(dropped), _LEVELS / (_LEVELS - dropped)
    if like.dtype == torch.bfloat16:  # which numpy knows by its bits only
        bits = torch.tensor(reciprocal, dtype=torch.bfloat16).view(torch.uint16).numpy()
        return torch.from_numpy(kept * bits).view(torch.bfloat16).view(like.shape)
    mask = kept.astype(np.float32)
    mask *= reciprocal
    return torch.from_numpy(mask).view(like.shape).to(like.dtype)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not (training and _draws(input, p)):
        return functional.dropout(input, p, training, inplace)
    return input * mask_of(input, p)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's attention; with dropout written out, since torch has no fused kernel for a CPU then either."""
    if enable_gqa or not _draws(query, dropout_p):
        own: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        kernel = _fp32_attention if _is_short_bf16(query, key) else functional.scaled_dot_product_attention
        return kernel(query, key, value, attn_mask, **own)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query if scale == 1 else query * scale, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    shares = scores.softmax(-1)
    return torch.matmul((shares * mask_of(shares, dropout_p)).to(value.dtype), value)


def _is_short_bf16(query: Tensor, key: Tensor) -> bool:
    longest = max(query.shape[-2], key.shape[-2])
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and longest <= LONGEST_CAST


def _fp32_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **own: Any) -> Tensor:
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        attended = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask, **own)
    return attended.to(query.dtype)


def _draws(tensor: Tensor, p: float) -> bool:
    return 0 < p < 1 and tensor.device.type == "cpu" and tensor.numel() >= LEAST_VALUES


_OWN: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.dropout: _dropout,
    functional.scaled_dot_product_attention: _attention,
}
