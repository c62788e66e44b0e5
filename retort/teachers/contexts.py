"""What a causal model has read: the keys and values of prompts, the last shared prefix being kept."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


@dataclass(slots=True)
class Context:
    """What the model has read in each row of a batch."""

    cache: DynamicCache
    """Keys and values."""
    mask: Tensor
    """`(rows, length)`: 1 for a token, 0 for padding."""

    def copied(self) -> "Context":
        """To go on in two ways. A growing layer replaces its tensors instead of changing them, so they are shared."""
        cache = copy.copy(self.cache)
        cache.layers = [
            copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer) for layer in cache.layers
        ]
        return Context(cache, self.mask)

    def spread(self, rows: int) -> "Context":
        """A context of one row for each of several; full attention only."""
        spread = self.copied()
        layers: list[Any] = spread.cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)
        spread.mask = self.mask.expand(rows, -1)
        return spread

    def keep(self, rows: list[int]) -> None:
        chosen = torch.tensor(rows, device=self.mask.device)
        self.cache.reorder_cache(chosen)  # type: ignore[arg-type]
        self.mask = self.mask[chosen]


class Reader:
    """Forward passes, the last prefix being kept."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # Windows of attention and recurrent states cannot be gone on from with padding in the middle.
        layers = DynamicCache(config=model.config).layers
        self._keeps_prefix = all(type(layer) is DynamicLayer for layer in layers)
        self._prefix: tuple[list[int], Context] = ([], self._nothing(1))

    def start(self, prompts: list[list[int]], known: list[int]) -> tuple[Context, Tensor, list[int]]:
        """Read whole prompts, which all begin with the tokens `known` and go on.

        Returns the context, logits `(rows, vocab)`, and for each row how many of its tokens had been read before.
        """
        if not self._keeps_prefix or not known:
            context, num_known, cached = self._nothing(len(prompts)), 0, [0] * len(prompts)
        else:
            cached = [len(known)] * len(prompts)
            if self._prefix[0] != known:
                self._prefix = ([], self._nothing(1))  # frees the last one first
                context = self._nothing(1)
                self.read(context, torch.tensor([known]), keep=1)
                self._prefix, cached[0] = (known, context), 0
            context, num_known = self._prefix[1].spread(len(prompts)), len(known)
        width = max(map(len, prompts)) - num_known
        tokens = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            own = prompt[num_known:]
            tokens[row, width - len(own) :] = torch.tensor(own)
            mask[row, width - len(own) :] = 1
        return context, self.read(context, tokens, mask, keep=1)[:, -1], cached

    @torch.inference_mode()
    def read(self, context: Context, tokens: Tensor, mask: Tensor | None = None, keep: int = 0) -> Tensor:
        """Go on with `tokens` `(rows, length)`, all of them real where there is no mask. Returns float32 logits
        `(rows, keep, vocab)` of the last tokens, of all where `keep` is 0."""
        device = self._model.device
        own = torch.ones_like(tokens) if mask is None else mask
        context.mask = torch.cat([context.mask, own.to(device)], dim=1)
        positions = (context.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self._model(
            input_ids=tokens.to(device),
            attention_mask=context.mask,
            position_ids=positions,
            past_key_values=context.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits.float().cpu()
        return logits

    def _nothing(self, rows: int) -> Context:
        mask = torch.ones(rows, 0, dtype=torch.long, device=self._model.device)
        return Context(DynamicCache(config=self._model.config), mask)


def known_beginning(prefix: list[int], prompts: list[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, as far as the prefix goes; each prompt keeps one token at least.

    A token at the prefix's end can differ by what follows: GPT-2 parts two line ends if a word comes next.
    """
    length = min(len(prefix), *(len(prompt) - 1 for prompt in prompts))
    while any(prompt[:length] != prefix[:length] for prompt in prompts):
        length -= 1
    return prefix[:length]
