"""What students that write are trained on: pairs of source and target, or both in one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from retort.method.objectives import cross_entropy
from retort.students.batching import Indices, bins_of, packed_batches, token_batches

Ids = NDArray[np.int64]

PACKED_TOKENS = 512
"""Length of a sequence that several rows are packed into: longer ones cost more in attention than they save."""


@dataclass(frozen=True, slots=True)
class Pair:
    source: Ids
    """For a decoder only: the prompt."""
    target: Ids
    """What is to be written."""
    probabilities: NDArray[np.float32] | None = None
    """`(target tokens, classes)` where the label is soft."""


class Seq2SeqLessons:
    """An encoder reads the source; the decoder, given the target's tokens so far, writes the next."""

    def __init__(self, model: torch.nn.Module, pairs: Sequence[Pair], *, pad: int, start: int, columns: slice) -> None:
        self._model, self._pairs, self._pad, self._start, self._columns = model, pairs, pad, start, columns
        self._lengths = np.array([(len(pair.source), len(pair.target)) for pair in pairs], dtype=np.int64)

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return token_batches(self._lengths, budget_tokens, generator)

    def units(self, rows: Indices) -> int:
        return int(self._lengths[rows, 1].sum())

    def tokens(self, rows: Indices) -> tuple[int, int]:
        lengths = self._lengths[rows]
        return int(lengths.sum()), len(rows) * int(lengths.max(axis=0).sum())

    def loss(self, rows: Indices) -> Tensor:
        device = next(self._model.parameters()).device
        pairs = [self._pairs[i] for i in rows]
        source = padded([pair.source for pair in pairs], self._pad, device)
        given = padded([np.concatenate([[self._start], pair.target[:-1]]) for pair in pairs], self._start, device)
        mask = padded([np.ones(len(pair.source), dtype=np.int64) for pair in pairs], 0, device)
        logits = self._model(input_ids=source, attention_mask=mask, decoder_input_ids=given, use_cache=False).logits
        is_target = padded([np.ones(len(pair.target), dtype=np.int64) for pair in pairs], 0, device).bool()
        return summed(logits[is_target], pairs, self._columns)


class CausalLessons:
    """Prompt and target in one sequence, with the objective on the target alone.

    Where `packs`, several rows share a sequence: each has positions of its own, by which transformers keeps its
    attention to itself. Else rows of similar length are padded.
    """

    def __init__(self, model: torch.nn.Module, pairs: Sequence[Pair], *, pad: int, columns: slice, packs: bool) -> None:
        self._model, self._pairs, self._pad, self._columns, self._packs = model, pairs, pad, columns, packs
        self._targets = np.array([len(pair.target) for pair in pairs], dtype=np.int64)
        # The last token of a target is written, never read.
        self._lengths = np.array([len(pair.source) for pair in pairs], dtype=np.int64) + self._targets - 1

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        cut = packed_batches if self._packs else token_batches
        return cut(self._lengths, budget_tokens, generator)

    def units(self, rows: Indices) -> int:
        return int(self._targets[rows].sum())

    def tokens(self, rows: Indices) -> tuple[int, int]:
        bins = self._bins(rows)
        width = max(int(self._lengths[rows[places]].sum()) for places in bins)
        return int(self._lengths[rows].sum()), width * len(bins)

    def loss(self, rows: Indices) -> Tensor:
        device = next(self._model.parameters()).device
        bins = [[self._pairs[i] for i in rows[places]] for places in self._bins(rows)]
        ids = padded([np.concatenate([_read(pair) for pair in pairs]) for pairs in bins], self._pad, device)
        # Padding is at position 0, a row by itself.
        positions = padded([np.concatenate([np.arange(len(_read(p))) for p in pairs]) for pairs in bins], 0, device)
        writes = padded([np.concatenate([_writes(pair) for pair in pairs]) for pairs in bins], 0, device).bool()
        logits = self._model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return summed(logits[writes], [pair for pairs in bins for pair in pairs], self._columns)

    def _bins(self, rows: Indices) -> list[list[int]]:
        return bins_of(self._lengths[rows], PACKED_TOKENS) if self._packs else [[place] for place in range(len(rows))]


def _read(pair: Pair) -> Ids:
    return np.concatenate([pair.source, pair.target[:-1]])


def _writes(pair: Pair) -> Ids:
    """1 where the next token is one of the target, else 0; as long as `_read`."""
    return np.concatenate([np.zeros(len(pair.source) - 1, dtype=np.int64), np.ones(len(pair.target), dtype=np.int64)])


def padded(rows: Sequence[Ids], value: int, device: torch.device) -> Tensor:
    """`(rows, longest)`, filled up on the right."""
    whole = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return torch.from_numpy(whole).to(device)


def summed(logits: Tensor, pairs: Sequence[Pair], columns: slice) -> Tensor:
    """The objective over `logits`, `(target tokens of all pairs, vocab)`, summed. Soft where every pair is."""
    logits = logits[:, columns].float()
    if all(pair.probabilities is not None for pair in pairs):
        soft = np.concatenate([pair.probabilities for pair in pairs if pair.probabilities is not None])
        return cross_entropy(logits, torch.from_numpy(soft).to(logits.device)).sum()
    hard = np.concatenate([pair.target for pair in pairs]) - (columns.start or 0)
    return cross_entropy(logits, torch.from_numpy(hard).to(logits.device)).sum()


def keeps_packed_rows_apart(model: PreTrainedModel) -> bool:
    """Whether two rows in one sequence give the logits that each gives alone: not every architecture looks at
    positions."""
    device = next(model.parameters()).device
    row = torch.arange(4, device=device)[None]
    positions = torch.arange(4, device=device)[None]
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        alone = model(input_ids=row, position_ids=positions, use_cache=False).logits
        both = torch.cat([row.flip(-1), row], -1), torch.cat([positions, positions], -1)
        packed = model(input_ids=both[0], position_ids=both[1], use_cache=False).logits[:, 4:]
    model.train(was_training)
    return bool(torch.allclose(alone, packed, rtol=1e-2, atol=1e-3 * float(alone.abs().max())))
