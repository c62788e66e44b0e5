"""What a causal model has read of prompts that begin alike, and how it goes on.

The rows of a batch are one sequence: the shared prefix, then each row's own tokens, in whatever order they come. A mask
lets a row see the prefix and itself only, and positions count as if it were alone (the tree attention of SpecInfer,
Miao et al. 2024). So the prefix's keys and values are computed once and held once, and nothing is padded.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_PREFIX = -1
"""In place of a row's number."""


@dataclass(slots=True)
class Context:
    """What was read: tokens of the prefix and of rows, which are numbered from 0."""

    cache: DynamicCache
    """Keys and values."""
    rows: Tensor
    """`(length,)`: each token's."""
    positions: Tensor
    """`(length,)`, in the row's own prompt, from 0."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Tokens by row, the prefix's included."""

    def copied(self) -> "Context":
        """To go on in several ways. A layer that only grows replaces its tensors, so both can hold the same; others
        (windows, recurrent states) are changed in place."""
        cache = copy.copy(self.cache)
        cache.layers = [
            copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer) for layer in cache.layers
        ]
        return Context(cache, self.rows, self.positions, self.lengths.copy())


class Reader:
    """Forward passes; keeps what was read of the last prefix."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        layers = DynamicCache(config=model.config).layers
        self.one_row_only = any(type(layer) is not DynamicLayer for layer in layers)
        """Attention through a window, and recurrent states, know no mask of ours."""
        self._prefix: tuple[list[int], Context] = ([], self._empty())

    def start(self, prompts: Sequence[list[int]], prefix: list[int]) -> tuple[Context, dict[int, Tensor], list[int]]:
        """Read prompts that all begin with `prefix` and are longer.

        Returns the context, logits `(1, vocab)` after each row's last token, and how many of each row's tokens had been
        read before.
        """
        known = [len(prefix)] * len(prompts)
        if self._prefix[0] != prefix:
            self._prefix = ([], self._empty())  # frees the last one first
            context = self._empty()
            if prefix:
                self.read(context, {_PREFIX: prefix})
            self._prefix, known[0] = (prefix, context), 0
        context = self._prefix[1].copied()
        return context, self.read(context, {row: ids[len(prefix) :] for row, ids in enumerate(prompts)}), known

    @torch.inference_mode()
    def read(self, context: Context, tokens: Mapping[int, Sequence[int]], *, every: bool = False) -> dict[int, Tensor]:
        """Go on in some rows, with at least one token in each. Returns float32 logits by row, after its last token
        `(1, vocab)`, or after every token `(tokens, vocab)`."""
        rows, positions, wanted = list[int](), list[int](), dict[int, range]()
        for row, own in tokens.items():
            start = context.lengths.get(row, context.lengths.get(_PREFIX, 0))
            context.lengths[row] = start + len(own)
            wanted[row] = range(len(rows) if every else len(rows) + len(own) - 1, len(rows) + len(own))
            rows += [row] * len(own)
            positions += range(start, start + len(own))
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
        """What the last `num_new` tokens see, `(1, 1, new, length)`: 0, and a very low number where they do not look.
        None where a row is alone: plain causal attention."""
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


def known_beginning(prefix: list[int], prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, as far as the prefix goes; each prompt keeps one token at least.

    A token at the prefix's end can differ by what follows: GPT-2 parts two line ends if a word comes next.
    """
    length = min(len(prefix), *(len(prompt) - 1 for prompt in prompts))
    while any(prompt[:length] != prefix[:length] for prompt in prompts):
        length -= 1
    return prefix[:length]
