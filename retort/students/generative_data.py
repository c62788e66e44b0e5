"""What students that write are trained on: pairs of source and target, or both in one sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from retort.config import DistillationConfig
from retort.students.batching import Indices, bins_of, packed_batches, token_batches
from retort.students.losses import cross_entropy
from retort.students.token_distillation import Listed, distilled
from retort.students.training_data import IGNORED, Inputs, PaddedTrainingData, padded, padded_with_mask

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
    listed: Listed | None = None
    """What the teacher could have written, where it said."""


class _TargetTrainingData(PaddedTrainingData):
    """Of targets that are written token by token. Distillation picks tokens by a mask, which cannot be recorded."""

    _distillation: DistillationConfig | None

    @property
    def is_recordable(self) -> bool:
        return self._distillation is None


class Seq2SeqTrainingData(_TargetTrainingData):
    """An encoder reads the source; the decoder, given the target's tokens so far, writes the next."""

    def __init__(
        self,
        model: torch.nn.Module,
        pairs: Sequence[Pair],
        *,
        pad: int,
        start: int,
        columns: slice,
        distillation: DistillationConfig | None = None,
    ) -> None:
        self.model, self._pairs, self._pad, self._start, self._columns = model, pairs, pad, start, columns
        self._distillation = distillation
        self._lengths = np.array([(len(pair.source), len(pair.target)) for pair in pairs], dtype=np.int64)

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return token_batches(self._lengths, budget_tokens, generator)

    def units(self, rows: Indices) -> int:
        return int(self._lengths[rows, 1].sum())

    def tokens(self, rows: Indices) -> tuple[int, int]:
        lengths = self._lengths[rows]
        return int(lengths.sum()), len(rows) * int(lengths.max(axis=0).sum())

    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """All `(rows, length)`: what the encoder reads, what the decoder does, and what is written."""
        pairs, start = [self._pairs[i] for i in rows], self._start
        source, mask = padded_with_mask([pair.source for pair in pairs], self._pad, multiple)
        return {
            "source": source,
            "mask": mask,
            "given": padded([np.concatenate([[start], pair.target[:-1]]) for pair in pairs], start, multiple),
            **_targets([[pair] for pair in pairs], [[0]] * len(pairs), self._columns, multiple),
        }

    def objective(self, inputs: Inputs) -> Tensor:
        read = {"input_ids": inputs["source"], "attention_mask": inputs["mask"]}
        logits = self.model(**read, decoder_input_ids=inputs["given"], use_cache=False).logits
        return summed(logits, inputs, self._columns, self._distillation)


class CausalTrainingData(_TargetTrainingData):
    """Prompt and target in one sequence, with the objective on the target alone.

    Where `packs`, several rows share a sequence: each has positions of its own, by which transformers keeps its
    attention to itself. Else rows of similar length are padded.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        pairs: Sequence[Pair],
        *,
        pad: int,
        columns: slice,
        packs: bool,
        distillation: DistillationConfig | None = None,
    ) -> None:
        self.model, self._pairs, self._pad, self._columns, self._packs = model, pairs, pad, columns, packs
        self._distillation = distillation
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

    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """All `(bins, length)`: what is read, where each token is in its row, and what is written after it."""
        bins = [[self._pairs[i] for i in rows[members]] for members in self._bins(rows)]
        places = [np.concatenate([np.arange(len(_read(pair))) for pair in pairs]) for pairs in bins]
        skipped = [[len(pair.source) - 1 for pair in pairs] for pairs in bins]
        return {
            "ids": padded([np.concatenate([_read(pair) for pair in pairs]) for pairs in bins], self._pad, multiple),
            # Padding is at position 0, a row by itself.
            "positions": padded(places, 0, multiple),
            **_targets(bins, skipped, self._columns, multiple),
        }

    def objective(self, inputs: Inputs) -> Tensor:
        logits = self.model(input_ids=inputs["ids"], position_ids=inputs["positions"], use_cache=False).logits
        return summed(logits, inputs, self._columns, self._distillation)

    def _bins(self, rows: Indices) -> list[list[int]]:
        return bins_of(self._lengths[rows], PACKED_TOKENS) if self._packs else [[place] for place in range(len(rows))]


def _read(pair: Pair) -> Ids:
    return np.concatenate([pair.source, pair.target[:-1]])


def _targets(bins: list[list[Pair]], skipped: list[list[int]], columns: slice, multiple: int) -> Inputs:
    """What is written at each place of sequences of some pairs, each of which comes after so many places of nothing:
    `targets` `(bins, length)`, or `probabilities` `(bins, length, classes)` where all pairs have them. `listed_ids` and
    `listed_logprobs` `(bins, length, k)` where a teacher could have written other tokens."""

    def sequences(rows: Callable[[Pair], NDArray[Any]], nothing: float) -> Tensor:
        filled = [
            np.concatenate([part for pair, n in zip(pairs, ns, strict=True) for part in _after(n, rows(pair), nothing)])
            for pairs, ns in zip(bins, skipped, strict=True)
        ]
        return padded(filled, nothing, multiple)

    pairs = [pair for members in bins for pair in members]
    if all(pair.probabilities is not None for pair in pairs):
        return {"probabilities": sequences(lambda pair: cast("NDArray[np.float32]", pair.probabilities), 0.0)}
    inputs = {"targets": sequences(lambda pair: pair.target - (columns.start or 0), IGNORED)}
    if width := max((pair.listed.ids.shape[1] for pair in pairs if pair.listed is not None), default=0):
        inputs["listed_ids"] = sequences(lambda pair: _listed(pair, width)[0], 0)
        inputs["listed_logprobs"] = sequences(lambda pair: _listed(pair, width)[1], -np.inf)
    return inputs


def _after(places: int, row: NDArray[Any], nothing: float) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.full((places, *row.shape[1:]), nothing, dtype=row.dtype), row


def _listed(pair: Pair, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and log-probabilities, `(target tokens, width)`."""
    ids = np.zeros((len(pair.target), width), dtype=np.int64)
    logprobs = np.full(ids.shape, -np.inf, dtype=np.float32)
    if pair.listed is not None:
        known, k = min(len(pair.target), len(pair.listed.ids)), pair.listed.ids.shape[1]
        ids[:known, :k], logprobs[:known, :k] = pair.listed.ids[:known], pair.listed.logprobs[:known]
    return ids, logprobs


def summed(logits: Tensor, inputs: Inputs, columns: slice, distillation: DistillationConfig | None) -> Tensor:
    """The objective over `logits`, `(bins, length, vocab)`, of what `_targets` gives, summed."""
    flat = logits[..., columns].float().flatten(0, 1)
    if "probabilities" in inputs:
        return cross_entropy(flat, inputs["probabilities"].flatten(0, 1)).sum()
    losses = cross_entropy(flat, inputs["targets"].flatten())
    if distillation is not None and "listed_ids" in inputs:
        return distilled(losses.view(inputs["targets"].shape), logits[..., columns], inputs, distillation).sum()
    return losses.sum()


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
