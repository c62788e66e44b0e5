"""Forward passes of a causal model over prompts that share a cached prefix.

The rows of a batch form one sequence: the shared prefix, then each row's own tokens in any order. A mask lets each row
attend to the prefix and itself only, and positions count as if the row were alone (tree attention, SpecInfer, Miao et
al. 2024). So the prefix's keys and values are computed and stored only once, and nothing is padded.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_PREFIX = -1
"""Stands for the prefix where a row number is expected."""


@dataclass(slots=True)
class Context:
    """The tokens processed so far, of the prefix and of rows, which are numbered from 0."""

    cache: DynamicCache
    """Keys and values."""
    rows: Tensor
    """`(length,)`: the row of each token."""
    positions: Tensor
    """`(length,)`: the position of each token in its row's prompt, from 0."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Number of tokens by row, including the prefix."""

    def copy(self) -> "Context":
        """A copy to continue in several ways. Layers that only grow replace their tensors, so the copies can share
        them; other layers (windows, recurrent states) are modified in place and need a deep copy."""
        cache = copy.copy(self.cache)
        cache.layers = [
            copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer) for layer in cache.layers
        ]
        return Context(cache, self.rows, self.positions, self.lengths.copy())


class CachedModel:
    """Runs forward passes and caches the last prefix."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        layers = DynamicCache(config=model.config).layers
        self.one_row_only = any(type(layer) is not DynamicLayer for layer in layers)
        """Whether batches are limited to one row: windowed attention and recurrent states ignore the mask."""
        self._prefix: tuple[list[int], Context] = ([], self._empty())

    def prefill(self, prompts: Sequence[list[int]], prefix: list[int]) -> tuple[Context, dict[int, Tensor], list[int]]:
        """Process prompts that all begin with `prefix` and are longer than it.

        Returns the context, logits `(1, vocab)` after each row's last token, and how many of each row's tokens were
        already cached.
        """
        known = [len(prefix)] * len(prompts)
        if self._prefix[0] != prefix:
            self._prefix = ([], self._empty())  # frees the last one first
            context = self._empty()
            if prefix:
                self.extend(context, {_PREFIX: prefix})
            self._prefix, known[0] = (prefix, context), 0
        context = self._prefix[1].copy()
        return context, self.extend(context, {row: ids[len(prefix) :] for row, ids in enumerate(prompts)}), known

    @torch.inference_mode()
    def extend(
        self, context: Context, tokens: Mapping[int, Sequence[int]], *, every: bool = False
    ) -> dict[int, Tensor]:
        """Process at least one more token in each of some rows. Returns float32 logits by row: after its last token
        `(1, vocab)`, or with `every` after each of its tokens `(tokens, vocab)`."""
        rows, positions, wanted = list[int](), list[int](), dict[int, range]()
        for row, own in tokens.items():
            prefill = context.lengths.get(row, context.lengths.get(_PREFIX, 0))
            context.lengths[row] = prefill + len(own)
            wanted[row] = range(len(rows) if every else len(rows) + len(own) - 1, len(rows) + len(own))
            rows += [row] * len(own)
            positions += range(prefill, prefill + len(own))
        context.rows = torch.cat([context.rows, self._tensor(rows)])
        context.positions = torch.cat([context.positions, self._tensor(positions)])
        output = self._model(
            input_ids=self._tensor([[token for own in tokens.values() for token in own]]),
            attention_mask=self._mask(context, len(rows)),
            position_ids=self._tensor([positions]),
            past_key_values=context.cache,
            use_cache=True,
            logits_to_keep=self._tensor([at for places in wanted.values() for at in places]),
        )
        parts = output.logits[0].float().cpu().split([len(places) for places in wanted.values()])
        return dict(zip(wanted, parts, strict=True))

    def _mask(self, context: Context, num_new: int) -> Tensor | None:
        """Additive attention mask of the last `num_new` tokens, `(1, 1, new, length)`: 0 where they attend, a very low
        number elsewhere. None if there is only one row, which needs plain causal attention."""
        if len(context.lengths.keys() - {_PREFIX}) <= 1:
            return None
        rows, positions = context.rows[-num_new:, None], context.positions[-num_new:, None]
        seen = ((context.rows == rows) | (context.rows == _PREFIX)) & (context.positions <= positions)
        mask = torch.zeros(seen.shape, dtype=self._model.dtype, device=self._model.device)
        return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)[None, None]

    def _tensor(self, numbers: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._model.device)

    def _empty(self) -> Context:
        return Context(DynamicCache(config=self._model.config), self._tensor([]), self._tensor([]))


def common_prefix(prefix: list[int], prompts: Sequence[list[int]]) -> list[int]:
    """The longest part of `prefix` that all prompts begin with; leaves at least one token of each prompt.

    The tokens at the prefix's end can depend on what follows: GPT-2 splits two line breaks if a word comes next.
    """
    length = min(len(prefix), *(len(prompt) - 1 for prompt in prompts))
    while any(prompt[:length] != prefix[:length] for prompt in prompts):
        length -= 1
    return prefix[:length]
