"""Greedy decoding: rows of similar length together, keys and values kept, rows that are done taken out.

The same tokens as `model.generate(do_sample=False, num_beams=1)` gives, but for rounding, which the composition of a
batch changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from retort.students.batching import token_batches
from retort.students.device import Device
from retort.students.targets import Bools, Written

KEEP_DONE_SHARE = 0.125
"""Rows that are done are taken out where they are more than this share: each time copies the others' keys."""


@dataclass(frozen=True, slots=True)
class Request:
    """One text to write a label for."""

    token_ids: NDArray[np.int64]
    """Of the source, or of the prompt."""
    most: int
    """Tokens to write at most."""
    legal: Bools | None = None
    """`(most, classes)` where classes are written; then exactly `most` tokens are."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    pad: int
    end: int | None
    """None where the lengths are known."""
    columns: slice = field(default_factory=lambda: slice(None))
    """Token ids that can be written."""


class Steps(Protocol):
    """A batch that a model is writing for."""

    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """`(rows, vocab)` after the last written `tokens`, `(rows,)`; None for the first."""
        ...

    def keep(self, rows: Tensor) -> None:
        """These rows only, `(rows,)` of indices."""
        ...


class Seq2SeqSteps:
    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int) -> None:
        """`ids` and `mask` are `(rows, length)`, padded on the right."""
        self._model, self._mask = model, mask
        self._first = torch.full((len(ids),), start, device=ids.device)
        encoder: Any = model.get_encoder()
        self._states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def next_logits(self, tokens: Tensor | None) -> Tensor:
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._mask,
            decoder_input_ids=(self._first if tokens is None else tokens)[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def keep(self, rows: Tensor) -> None:
        self._states, self._mask = self._states[rows], self._mask[rows]
        self._cache.batch_select_indices(rows)


class CausalSteps:
    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
        """`ids` and `mask` are `(rows, length)`, padded on the left."""
        self._model, self._ids, self._mask = model, ids, mask
        self._cache = DynamicCache()

    def next_logits(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        ids = self._ids if tokens is None else tokens[:, None]
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def keep(self, rows: Tensor) -> None:
        self._mask = self._mask[rows]
        self._cache.batch_select_indices(rows)


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    requests: Sequence[Request],
    vocabulary: Vocabulary,
    *,
    device: Device,
    batch_tokens: int,
    start: int | None,
) -> list[Written]:
    """In the order of the requests. `start` is an encoder-decoder's first token; None for a decoder only.

    A batch has `rows x (longest source + longest limit) <= batch_tokens`, one row at least; a limit that only guards
    (text) does not count.
    """
    lengths = np.array([(len(r.token_ids), r.most if r.legal is not None else 0) for r in requests], dtype=np.int64)
    result: dict[int, Written] = {}
    for batch in token_batches(lengths.reshape(-1, 2), batch_tokens):
        members = [requests[index] for index in batch]
        with device.autocast():
            ids, mask = _padded(members, vocabulary.pad, model.device, on_the_left=start is None)
            steps: Steps = CausalSteps(model, ids, mask) if start is None else Seq2SeqSteps(model, ids, mask, start)
            result.update(zip(batch.tolist(), _write(steps, members, vocabulary, model.device), strict=True))
    return [result[index] for index in range(len(requests))]


def _padded(members: Sequence[Request], pad: int, device: torch.device, *, on_the_left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, `(rows, length)`."""
    length = max(len(member.token_ids) for member in members)
    ids = np.full((len(members), length), pad, dtype=np.int64)
    mask = np.zeros((len(members), length), dtype=np.int64)
    for row, member in enumerate(members):
        place = slice(length - len(member.token_ids), None) if on_the_left else slice(0, len(member.token_ids))
        ids[row, place], mask[row, place] = member.token_ids, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@dataclass(slots=True)
class _Trace:
    """Of all rows of a batch, step by step; a row's part ends with its last token."""

    rows: list[NDArray[np.int64]]
    tokens: list[NDArray[np.int64]]
    logprobs: list[NDArray[np.float32]]
    probabilities: list[NDArray[np.float32]]


def _write(steps: Steps, members: Sequence[Request], vocabulary: Vocabulary, device: torch.device) -> Iterator[Written]:
    """`open_rows` are the rows that the model still holds, `is_open` which of them are not done."""
    most = torch.tensor([member.most for member in members], device=device)
    legal = _legal(members, device)
    open_rows = torch.arange(len(members), device=device)
    is_open, tokens, trace = most > 0, None, _Trace([], [], [], [])
    step = 0
    while bool(is_open.any()):
        done = int((~is_open).sum())
        if done > KEEP_DONE_SHARE * len(is_open):
            kept = is_open.nonzero()[:, 0]
            if tokens is not None:
                steps.keep(kept)
                tokens = tokens[kept]
                open_rows, is_open = open_rows[kept], is_open[kept]
        logits = steps.next_logits(tokens)[:, vocabulary.columns].float()
        logprobs = logits.log_softmax(-1)
        if legal is not None:
            logits = logits.masked_fill(~legal[open_rows, step], -torch.inf)
        chosen = logits.argmax(-1)
        tokens = chosen + (vocabulary.columns.start or 0)
        _note(trace, open_rows, is_open, tokens, logprobs.gather(-1, chosen[:, None])[:, 0], logprobs, legal)
        step += 1
        is_open = is_open & (most[open_rows] > step)
        if vocabulary.end is not None:
            is_open = is_open & (tokens != vocabulary.end)
    yield from _written(trace, members, vocabulary)


def _legal(members: Sequence[Request], device: torch.device) -> Tensor | None:
    """`(rows, longest, classes)`; beyond a row's end anything is, since nobody reads it."""
    masks = [member.legal for member in members if member.legal is not None]
    if not masks:
        return None
    whole = np.ones((len(members), max(len(mask) for mask in masks), masks[0].shape[1]), dtype=np.bool_)
    for row, mask in enumerate(masks):
        whole[row, : len(mask)] = mask
    return torch.from_numpy(whole).to(device)


def _note(
    trace: _Trace,
    open_rows: Tensor,
    is_open: Tensor,
    tokens: Tensor,
    chosen_logprobs: Tensor,
    logprobs: Tensor,
    legal: Tensor | None,
) -> None:
    trace.rows.append(open_rows[is_open].cpu().numpy())
    trace.tokens.append(tokens[is_open].cpu().numpy())
    trace.logprobs.append(chosen_logprobs[is_open].cpu().numpy())
    if legal is not None:
        trace.probabilities.append(logprobs[is_open].exp().cpu().numpy())


def _written(trace: _Trace, members: Sequence[Request], vocabulary: Vocabulary) -> Iterator[Written]:
    """The steps' columns as rows."""
    ids: list[list[int]] = [[] for _ in members]
    logprobs: list[list[float]] = [[] for _ in members]
    probabilities: list[list[NDArray[np.float32]]] = [[] for _ in members]
    for step, rows in enumerate(trace.rows):
        for place, row in enumerate(rows.tolist()):
            ids[row].append(int(trace.tokens[step][place]))
            logprobs[row].append(float(trace.logprobs[step][place]))
            if trace.probabilities:
                probabilities[row].append(trace.probabilities[step][place])
    for row, member in enumerate(members):
        width = member.legal.shape[1] if member.legal is not None else 0
        matrix = np.array(probabilities[row], dtype=np.float32).reshape(len(probabilities[row]), width)
        is_finished = member.legal is not None or (ids[row][-1:] == [vocabulary.end])
        yield Written(ids[row], logprobs[row], is_finished, matrix)
