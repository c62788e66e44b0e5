"""Training data of generative students: source and target as a pair, or both in one sequence."""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from retort.config import DistillationConfig
from retort.models.device import Device
from retort.students.attention import attending_packed
from retort.students.batching import Indices, bins_of, packed_batches, token_batches
from retort.students.head import TokenLoss, bypassed, head_cross_entropy, head_of
from retort.students.losses import cross_entropy
from retort.students.ragged import Ragged
from retort.students.sharding import forget_pass
from retort.students.token_distillation import Listed, distilled
from retort.students.training_data import IGNORED, Inputs, PaddedTrainingData, padded, padded_with_mask

Ids = NDArray[np.int64]

PACKED_TOKENS = 512
"""Length of a packed sequence in tokens: longer ones cost more in attention than they save in padding."""

_PLACES_PARTS = 16
"""The number of positions with a target is rounded up to so many parts of all positions."""
_FLAT_MULTIPLE = 64
"""Packed sequences that stand one after the other are filled to a multiple of this, so that lengths recur."""
_STARTS_MULTIPLE = 64
"""The number of rows in packed sequences is rounded up to a multiple of this."""


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


class TrainingPairs:
    """The pairs of a training, all of which are written before the first is read. Memory holds 48 bytes a pair; the
    files have 4 a token, 4 a class of each soft token, and 8 a listed token, see `Ragged`."""

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._sources, self._targets, self._probabilities = Ragged(), Ragged(), Ragged()
        self._listed_ids, self._listed_logprobs, self._widths = Ragged(), Ragged(), array("i")
        """The widths are how many tokens are listed at each of a pair's; 0: none."""
        self._weights = array("f")
        self.extend(pairs)

    def extend(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            self.append(pair)

    def append(self, pair: Pair) -> None:
        soft = np.empty(0) if pair.probabilities is None else pair.probabilities
        listed = pair.listed or _NOTHING
        self._sources.append(pair.source.astype(np.int32))
        self._targets.append(pair.target.astype(np.int32))
        self._probabilities.append(soft.astype(np.float32).ravel())
        self._listed_ids.append(listed.ids.astype(np.int32).ravel())
        self._listed_logprobs.append(listed.logprobs.astype(np.float32).ravel())
        self._widths.append(listed.ids.shape[1])
        self._weights.append(pair.weight)

    def weigh(self, weight: float) -> None:
        """Gives all of them this weight."""
        self._weights = array("f", [weight]) * len(self)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, place: int) -> Pair:
        """Raises IndexError; places are counted from 0 only."""
        source, target = (own[place].astype(np.int64) for own in (self._sources, self._targets))
        soft, width, listed = self._probabilities[place], self._widths[place], None
        if width:
            listed = Listed(*(own[place].reshape(-1, width) for own in (self._listed_ids, self._listed_logprobs)))
        probabilities = soft.reshape(len(target), -1) if len(soft) else None
        return Pair(source, target, probabilities, listed, self._weights[place])

    def __iter__(self) -> Iterator[Pair]:
        return (self[place] for place in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(pairs, 2)`: numbers of source tokens and of target tokens."""
        return np.stack([self._sources.lengths, self._targets.lengths], axis=1)

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """`(pairs,)`; None if all are 1."""
        weights = np.array(self._weights, dtype=np.float32)
        return None if (weights == 1).all() else weights


_NOTHING = Listed(np.empty((0, 0), dtype=np.int32), np.empty((0, 0), dtype=np.float32))


class _TargetTrainingData(PaddedTrainingData):
    """Targets learned token by token. Token distillation selects tokens by a mask, which CUDA graphs cannot record."""

    _distillation: DistillationConfig | None
    _weights: NDArray[np.float32] | None
    """`(pairs,)`: their weights; None if all count alike."""
    _targets: NDArray[np.int64]
    """`(pairs,)`: numbers of target tokens."""
    _columns: slice
    _head: torch.nn.Linear | None = None
    """The model's output layer, if its loss is computed with it; chosen by `prepare`."""
    _token_loss: TokenLoss

    @property
    def is_recordable(self) -> bool:
        return self._distillation is None

    @property
    def kernels(self) -> Sequence[torch.nn.Module]:
        return () if self._head is None else (self._token_loss,)

    def prepare(self, device: Device) -> None:
        if self._distillation is None:
            place, some = next(self.model.parameters()).device, self.inputs(np.zeros(1, dtype=np.int64), 1)
            inputs = {name: tensor.to(place) for name, tensor in some.items()}
            self._head, self._token_loss = head_of(self.model, lambda: self._logits(inputs)), TokenLoss()

    @abstractmethod
    def _logits(self, inputs: Inputs) -> Tensor:
        """`(bins, length, vocab)`."""

    def objective(self, inputs: Inputs) -> Tensor:
        if self._head is None or "places" not in inputs:
            return summed(self._logits(inputs), inputs, self._columns, self._distillation)
        with bypassed(self._head):
            hidden = self._logits(inputs).flatten(0, 1)
        targets, weights, places = inputs["targets"][0], inputs["weights"][0], inputs["places"][0]
        return head_cross_entropy(hidden, self._head, self._columns, targets, weights, places, self._token_loss)

    def _learned(self, bins: list[list[Pair]], skipped: list[list[int]], multiple: int) -> Inputs:
        inputs = _targets(bins, skipped, self._columns, multiple, self._weights is not None)
        return inputs if self._head is None or "targets" not in inputs else at_places(inputs)

    def units(self, rows: Indices) -> float:
        if self._weights is None:
            return int(self._targets[rows].sum())
        return float((self._targets[rows] * self._weights[rows]).sum())


class Seq2SeqTrainingData(_TargetTrainingData):
    """The encoder reads the source; the decoder predicts each target token from those before it."""

    def __init__(
        self,
        model: torch.nn.Module,
        pairs: TrainingPairs,
        *,
        pad: int,
        start: int,
        columns: slice,
        distillation: DistillationConfig | None = None,
    ) -> None:
        self.model, self._pairs, self._pad, self._start, self._columns = model, pairs, pad, start, columns
        self._distillation = distillation
        self._lengths, self._weights = pairs.lengths, pairs.weights
        self._targets = self._lengths[:, 1]

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
            **self._learned([[pair] for pair in pairs], [[0]] * len(pairs), multiple),
        }

    def _logits(self, inputs: Inputs) -> Tensor:
        read = {"input_ids": inputs["source"], "attention_mask": inputs["mask"]}
        logits: Tensor = self.model(**read, decoder_input_ids=inputs["given"], use_cache=False).logits
        return logits


class CausalTrainingData(_TargetTrainingData):
    """Prompt and target in one sequence, with the objective on the target only.

    With `packs`, several rows share a sequence: each has its own positions, from which transformers derives that rows
    must not attend to each other. Otherwise, rows of similar length are padded.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        pairs: TrainingPairs,
        *,
        pad: int,
        columns: slice,
        packs: bool,
        distillation: DistillationConfig | None = None,
    ) -> None:
        self.model, self._pairs, self._pad, self._columns, self._packs = model, pairs, pad, columns, packs
        self._distillation, self._is_flat = distillation, False
        sources, self._targets = pairs.lengths.T
        self._weights = pairs.weights
        self._lengths = sources + self._targets - 1  # the last target token is predicted but never fed in

    def prepare(self, device: Device) -> None:
        self._is_flat = (
            self._packs and device.name == "cuda" and device.precision == "bf16" and can_attend_flat(self.model)
        )
        super().prepare(device)

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
        multiple = max(multiple, _FLAT_MULTIPLE) if self._is_flat else multiple
        places = [np.concatenate([np.arange(len(_read(pair))) for pair in pairs]) for pairs in bins]
        skipped = [[len(pair.source) - 1 for pair in pairs] for pairs in bins]
        inputs = {
            "ids": padded([np.concatenate([_read(pair) for pair in pairs]) for pairs in bins], self._pad, multiple),
            # Padding is at position 0, as if it were a row of its own.
            "positions": padded(places, 0, multiple),
            **self._learned(bins, skipped, multiple),
        }
        if self._is_flat:
            inputs["starts"] = starts_of(
                [[len(_read(pair)) for pair in pairs] for pairs in bins], inputs["ids"].shape[1]
            )
        return inputs

    def _logits(self, inputs: Inputs) -> Tensor:
        ids, positions = inputs["ids"], inputs["positions"]
        if "starts" not in inputs:
            logits: Tensor = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
            return logits
        rows = {"cu_seq_lens_q": inputs["starts"][0], "max_length_q": ids.shape[1]}
        with attending_packed(self.model):
            flat = self.model(input_ids=ids.view(1, -1), position_ids=positions.view(1, -1), use_cache=False, **rows)
        return flat.logits.view(*ids.shape, -1)  # type: ignore[no-any-return]

    def _bins(self, rows: Indices) -> list[list[int]]:
        return bins_of(self._lengths[rows], PACKED_TOKENS) if self._packs else [[place] for place in range(len(rows))]


def _read(pair: Pair) -> Ids:
    return np.concatenate([pair.source, pair.target[:-1]])


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


def at_places(inputs: Inputs) -> Inputs:
    """Targets and weights at the positions that have a target only, `(1, tokens)` each, with these `places` in the
    flattened sequences. What fills up to a size that recurs has the place after the last one and weight 0."""
    targets = inputs["targets"].flatten()
    (places,) = torch.nonzero(targets != IGNORED, as_tuple=True)
    weights = inputs["weights"].flatten()[places] if "weights" in inputs else torch.ones(len(places))
    multiple = max(1, len(targets) // _PLACES_PARTS)
    filling = (0, -len(places) % multiple)
    pad = torch.nn.functional.pad
    return {
        "targets": pad(targets[places], filling)[None],
        "weights": pad(weights, filling)[None],
        "places": pad(places, filling, value=len(targets))[None],
    }


def starts_of(lengths: Sequence[Sequence[int]], width: int) -> Tensor:
    """Where each row of packed sequences begins, and where the last one ends, if the sequences, of `width` tokens each,
    stand one after the other: int32 `(1, rows + 1)`. A sequence's padding is a row; what fills up to a size that recurs
    is empty rows at the end."""
    whole = [[*own, width - sum(own)] for own in lengths]
    starts = np.concatenate([[0], np.cumsum(np.concatenate(whole))])
    return torch.from_numpy(np.pad(starts, (0, -len(starts) % _STARTS_MULTIPLE), mode="edge").astype(np.int32))[None]


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


def can_attend_flat(model: torch.nn.Module) -> bool:
    """Whether the model, on a GPU, attends by `packed_attention`, with the same logits."""
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    rows = {"cu_seq_lens_q": torch.tensor([0, 4, 8, 8], dtype=torch.int32, device=ids.device), "max_length_q": 8}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(input_ids=ids, position_ids=ids % 4, use_cache=False).logits
            with attending_packed(model):
                found = model(input_ids=ids, position_ids=ids % 4, use_cache=False, **rows).logits
    except (RuntimeError, TypeError, ValueError):
        forget_pass(model)
        return False
    finally:
        model.train(was_training)
    return bool(torch.allclose(found, expected, rtol=0.0, atol=3e-2 * float(expected.abs().max())))


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
