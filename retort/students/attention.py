"""Attention in packed rows for training on a GPU: a function that models of transformers call in place of their own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig

_PACKED = "retort-packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of one packed sequence, by FlashAttention (arXiv 2307.08691), which skips all
    pairs of positions of different rows instead of masking them.

    `query` is `(1, heads, positions, width)`, `key` and `value` likewise with as many heads or a divisor of them.
    `cu_seq_lens_q` is int32 `(rows + 1,)`, the rows' starts and the end of the last; rows may be empty. No row is
    longer than `max_length_q`. Returns `(1, positions, heads, width)` in the query's dtype.
    """
    if asked := [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]:
        raise ValueError(f"attention in packed rows has no {asked[0]}")
    flat = [part[0].transpose(0, 1).to(torch.bfloat16) for part in (query, key, value)]
    window = {} if sliding_window is None else {"window_size_left": sliding_window - 1, "window_size_right": 0}
    starts, longest = cu_seq_lens_q, max_length_q
    output = torch.ops.aten._flash_attention_forward(
        *flat, starts, starts, longest, longest, dropout, True, False, scale=scaling, **window
    )[0]
    return output[None].to(query.dtype), None


# It needs no mask, and transformers makes none for a name that it does not know.
AttentionInterface.register(_PACKED, packed_attention)


@contextlib.contextmanager
def attending_packed(model: torch.nn.Module) -> Iterator[None]:
    """Lets all layers of `model` attend by `packed_attention` inside the context."""
    found = {id(own): own for module in model.modules() if isinstance(own := _config(module), PretrainedConfig)}
    before = [(config, config._attn_implementation) for config in found.values()]
    for config, _ in before:
        config._attn_implementation = _PACKED
    try:
        yield
    finally:
        for config, old in before:
            config._attn_implementation = old


def _config(module: torch.nn.Module) -> Any:
    return module.__dict__.get("config")
