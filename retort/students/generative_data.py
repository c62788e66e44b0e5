"""Training data of generative students: source and target as a pair, or both in one sequence."""

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
"""Length of a packed sequence in tokens: longer ones cost more in attention than they save in padding."""


@dataclass(frozen=True, slots=True)
class Pair:
    source: Ids
    """`(source tokens,)`; for decoder-only models the prompt."""
    target: Ids
    """`(target tokens,)`."""
    probabilities: NDArray[np.float32] | None = None
    """`(target tokens, classes)`: the soft label; None for a hard one."""
    listed: Listed | None = None
    """The teacher's most likely tokens at each target token, if known."""
    weight: float = 1.0
    """What each of its target tokens counts in the objective."""


class _TargetTrainingData(PaddedTrainingData):
    """Targets learned token by token. Token distillation selects tokens by a mask, which CUDA graphs cannot record."""

    _distillation: DistillationConfig | None
    _weights: NDArray[np.float32] | None
    """`(pairs,)`: their weights; None if all count alike."""
    _targets: NDArray[np.int64]
    """`(pairs,)`: numbers of target tokens."""

    @property
    def is_recordable(self) -> bool:
        return self._distillation is None

    def units(self, rows: Indices) -> float:
        if self._weights is None:
            return int(self._targets[rows].sum())
        return float((self._targets[rows] * self._weights[rows]).sum())


class Seq2SeqTrainingData(_TargetTrainingData):
    """The encoder reads the source; the decoder predicts each target token from those before it."""

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
        self._lengths = np.array([(len(pair.source), len(pair.target)) for pair in pairs], dtype=np.int64).reshape(
            -1, 2
        )
        self._targets, self._weights = self._lengths[:, 1], _weights(pairs)

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        return token_batches(self._lengths, budget_tokens, generator)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        lengths = self._lengths[rows]
        return int(lengths.sum()), len(rows) * int(lengths.max(axis=0).sum())

    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """`source`, `mask` and `given` (the decoder's input), `(rows, length)` each, and what `_targets` adds."""
        pairs, start = [self._pairs[i] for i in rows], self._start
        source, mask = padded_with_mask([pair.source for pair in pairs], self._pad, multiple)
        return {
            "source": source,
            "mask": mask,
            "given": padded([np.concatenate([[start], pair.target[:-1]]) for pair in pairs], start, multiple),
            **_targets(
                [[pair] for pair in pairs], [[0]] * len(pairs), self._columns, multiple, self._weights is not None
            ),
        }

    def objective(self, inputs: Inputs) -> Tensor:
        read = {"input_ids": inputs["source"], "attention_mask": inputs["mask"]}
        logits = self.model(**read, decoder_input_ids=inputs["given"], use_cache=False).logits
        return summed(logits, inputs, self._columns, self._distillation)


class CausalTrainingData(_TargetTrainingData):
    """Prompt and target in one sequence, with the objective on the target only.

    With `packs`, several rows share a sequence: each has its own positions, from which transformers derives that rows
    must not attend to each other. Otherwise, rows of similar length are padded.
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
        self._targets, self._weights = np.array([len(pair.target) for pair in pairs], dtype=np.int64), _weights(pairs)
        # The last target token is predicted but never fed in.
        self._lengths = np.array([len(pair.source) for pair in pairs], dtype=np.int64) + self._targets - 1

    def batches(self, budget_tokens: int, generator: np.random.Generator) -> list[Indices]:
        cut = packed_batches if self._packs else token_batches
        return cut(self._lengths, budget_tokens, generator)

    def tokens(self, rows: Indices) -> tuple[int, int]:
        bins = self._bins(rows)
        width = max(int(self._lengths[rows[places]].sum()) for places in bins)
        return int(self._lengths[rows].sum()), width * len(bins)

    def inputs(self, rows: Indices, multiple: int) -> Inputs:
        """`ids` and `positions` within each row, `(bins, length)` each, and what `_targets` adds."""
        bins = [[self._pairs[i] for i in rows[members]] for members in self._bins(rows)]
        places = [np.concatenate([np.arange(len(_read(pair))) for pair in pairs]) for pairs in bins]
        skipped = [[len(pair.source) - 1 for pair in pairs] for pairs in bins]
        return {
            "ids": padded([np.concatenate([_read(pair) for pair in pairs]) for pairs in bins], self._pad, multiple),
            # Padding is at position 0, as if it were a row of its own.
            "positions": padded(places, 0, multiple),
            **_targets(bins, skipped, self._columns, multiple, self._weights is not None),
        }

    def objective(self, inputs: Inputs) -> Tensor:
        logits = self.model(input_ids=inputs["ids"], position_ids=inputs["positions"], use_cache=False).logits
        return summed(logits, inputs, self._columns, self._distillation)

    def _bins(self, rows: Indices) -> list[list[int]]:
        return bins_of(self._lengths[rows], PACKED_TOKENS) if self._packs else [[place] for place in range(len(rows))]


def _read(pair: Pair) -> Ids:
    return np.concatenate([pair.source, pair.target[:-1]])


def _weights(pairs: Sequence[Pair]) -> NDArray[np.float32] | None:
    weights = np.array([pair.weight for pair in pairs], dtype=np.float32)
    return None if (weights == 1).all() else weights


def _targets(
    bins: list[list[Pair]], skipped: list[list[int]], columns: slice, multiple: int, weighs: bool = False
) -> Inputs:
    """The next token at each position of packed sequences; before each pair, `skipped` positions have no target.

    `targets` is `(bins, length)`; if all pairs are soft, it is `probabilities` `(bins, length, classes)` instead. If
    the teacher's most likely tokens are known, `listed_ids` and `listed_logprobs` `(bins, length, k)` are added; if the
    pairs are weighed, `weights` `(bins, length)`.
    """

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
    if weighs:
        inputs["weights"] = sequences(lambda pair: np.full(len(pair.target), pair.weight, dtype=np.float32), 0.0)
    if width := max((pair.listed.ids.shape[1] for pair in pairs if pair.listed is not None), default=0):
        inputs["listed_ids"] = sequences(lambda pair: _listed(pair, width)[0], 0)
        inputs["listed_logprobs"] = sequences(lambda pair: _listed(pair, width)[1], -np.inf)
    return inputs


def _after(places: int, row: NDArray[Any], nothing: float) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.full((places, *row.shape[1:]), nothing, dtype=row.dtype), row


def _listed(pair: Pair, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The teacher's token ids and log-probabilities, `(target tokens, width)` each; -inf where there are fewer."""
    ids = np.zeros((len(pair.target), width), dtype=np.int64)
    logprobs = np.full(ids.shape, -np.inf, dtype=np.float32)
    if pair.listed is not None:
        known, k = min(len(pair.target), len(pair.listed.ids)), pair.listed.ids.shape[1]
        ids[:known, :k], logprobs[:known, :k] = pair.listed.ids[:known], pair.listed.logprobs[:known]
    return ids, logprobs


def summed(logits: Tensor, inputs: Inputs, columns: slice, distillation: DistillationConfig | None) -> Tensor:
    """The objective summed over all tokens; `logits` is `(bins, length, vocab)`, `inputs` as `_targets` gives them."""
    flat = logits[..., columns].float().flatten(0, 1)
    if "probabilities" in inputs:
        return cross_entropy(flat, inputs["probabilities"].flatten(0, 1)).sum()
    losses = cross_entropy(flat, inputs["targets"].flatten())
    if "weights" in inputs:
        losses = losses * inputs["weights"].flatten()
    if distillation is not None and "listed_ids" in inputs:
        return distilled(losses.view(inputs["targets"].shape), logits[..., columns], inputs, distillation).sum()
    return losses.sum()


def keeps_packed_rows_apart(model: PreTrainedModel) -> bool:
    """Whether packed rows get the same logits as separate ones: not every architecture separates rows by position."""
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
