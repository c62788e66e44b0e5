"""Greedy decoding: rows of similar length together, keys and values kept, rows that are done taken out.

The same tokens as `model.generate(do_sample=False, num_beams=1)` gives, but for rounding, which the composition of a
batch changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from retort.models.device import Device
from retort.students.batching import token_batches
from retort.students.grammar import Grammar, GrammarState
from retort.students.targets import Bools, Written
from retort.students.training_data import padded_with_mask

KEEP_DONE_SHARE = 0.125
"""Rows that are done are taken out where they are more than this share: each time copies the others' keys."""
LOOK_STEPS = {"cpu": 1, "cuda": 8}
"""How often it is looked which rows are done: a GPU must wait for the look."""
STEP_SCALE = {"cpu": 4, "cuda": 64}
"""Tokens of a batch, in those of one that is only read: a step computes one token of each row, and its cost is what
surrounds the computation unless there are hundreds of rows."""
ROOM_TOKENS = 32
"""By which the keys' memory grows."""


@dataclass(frozen=True, slots=True)
class Request:
    """One text to write a label for."""

    token_ids: NDArray[np.int64]
    """Of the source, or of the prompt."""
    most: int
    """Tokens to write at most."""
    legal: Bools | None = None
    """`(most, classes)` where classes are written; then exactly `most` tokens are."""
    grammar: str | None = None
    """Of what may be written where text is; see `Problem.grammar`."""


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

    def keep(self, rows: Tensor | slice) -> None:
        """These rows only; a slice copies nothing."""
        ...


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, `(rows, heads, tokens, width)`, at the front of larger tensors: a step writes its
    token's instead of copying all."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = (key_states[:, :, :0], value_states[:, :, :0])
        start, stop = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if stop > self._rooms[0].shape[2]:
            keys, values = self._rooms
            self._rooms = _with_room(keys, stop + ROOM_TOKENS), _with_room(values, stop + ROOM_TOKENS)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor | slice) -> None:
        if self.is_initialized:
            length = self.get_seq_length()
            keys, values = self._rooms
            self._rooms = keys[indices], values[indices]
            self.keys, self.values = (room[:, :, :length] for room in self._rooms)


def _with_room(states: Tensor, tokens: int) -> Tensor:
    wider = states.new_empty((*states.shape[:2], tokens, states.shape[3]))
    wider[:, :, : states.shape[2]] = states
    return wider


class Seq2SeqSteps:
    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int) -> None:
        """`ids` and `mask` are `(rows, length)`, padded on the right."""
        self._model = model
        self._first = torch.full((len(ids),), start, device=ids.device)
        encoder: Any = model.get_encoder()
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        self._states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        # The model would make it again at each step, and wait for the GPU to see whether there is any padding.
        self._mask: Any = create_bidirectional_mask(
            config=decoder.config,
            inputs_embeds=self._states[:, :1],
            attention_mask=mask,
            encoder_hidden_states=self._states,
        )
        self._caches = Cache(layer_class_to_replicate=RoomyLayer), Cache(layer_class_to_replicate=DynamicLayer)
        self._cache = EncoderDecoderCache(*self._caches)

    def next_logits(self, tokens: Tensor | None) -> Tensor:
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._mask,
            decoder_input_ids=(self._first if tokens is None else tokens)[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def keep(self, rows: Tensor | slice) -> None:
        self._first, self._states = self._first[rows], self._states[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]
        for cache in self._caches:
            cache.batch_select_indices(rows)  # type: ignore[arg-type]


class CausalSteps:
    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
        """`ids` and `mask` are `(rows, length)`, padded on the left."""
        self._model, self._ids, self._mask = model, ids, mask
        self._cache = Cache(layer_class_to_replicate=RoomyLayer)

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

    def keep(self, rows: Tensor | slice) -> None:
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        self._cache.batch_select_indices(rows)  # type: ignore[arg-type]


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    requests: Sequence[Request],
    vocabulary: Vocabulary,
    *,
    device: Device,
    batch_tokens: int,
    start: int | None,
    guides: Grammar | None = None,
) -> list[Written]:
    """In the order of the requests. `start` is an encoder-decoder's first token; None for a decoder only. Without
    `guides` no request's grammar counts.

    A batch has `rows x (longest source + longest limit) <= batch_tokens`, one row at least; a limit that only guards
    (text, which has an end) does not count.
    """
    known = vocabulary.end is None
    lengths = np.array([(len(r.token_ids), r.most if known else 0) for r in requests], dtype=np.int64)
    result: dict[int, Written] = {}
    for indices in token_batches(lengths.reshape(-1, 2), batch_tokens):
        batch = sorted(indices.tolist(), key=lambda index: -requests[index].most)
        members = [requests[index] for index in batch]
        with device.autocast():
            ids, mask = _padded(members, vocabulary.pad, model.device, on_the_left=start is None)
            steps: Steps = CausalSteps(model, ids, mask) if start is None else Seq2SeqSteps(model, ids, mask, start)
            result.update(zip(batch, _write(steps, members, vocabulary, model.device, guides), strict=True))
    return [result[index] for index in range(len(requests))]


def _padded(members: Sequence[Request], pad: int, device: torch.device, *, on_the_left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, `(rows, length)`."""
    step = -1 if on_the_left else 1
    both = padded_with_mask([member.token_ids[::step] for member in members], pad)
    ids, mask = (tensor.flip(1) if on_the_left else tensor for tensor in both)
    return ids.to(device), mask.to(device)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """What all rows of a batch wrote, `(rows, longest limit)`: on the device, so that no step waits for a copy."""

    columns: Tensor
    """Of the vocabulary's."""
    logprobs: Tensor
    """Of these columns."""
    probabilities: Tensor | None
    """`(rows, longest limit, classes)` where classes are written."""


def _write(
    steps: Steps, members: Sequence[Request], vocabulary: Vocabulary, device: torch.device, guides: Grammar | None
) -> list[Written]:
    """`members` by falling limit: those that have come to theirs are the last rows, which are cut off without a copy.

    `rows` are the members that the model still holds, `limits` theirs.
    """
    guidance = guides.batch([member.grammar for member in members]) if guides else None
    held = np.arange(len(members))
    limits = np.array([member.most for member in members])
    sheet, legal = _sheet(members, device), _legal(members, device)
    rows, tokens = torch.arange(len(members), device=device), None
    has_ended = torch.zeros(len(members), dtype=torch.bool, device=device)
    for step in range(int(limits[0])):
        looks = vocabulary.end is not None and step % LOOK_STEPS[device.type] == 0
        kept = _kept(limits, step, has_ended if looks else None)
        if kept is not None:
            limits, held = limits[kept], held[kept]
            if not len(limits):
                break
            places = kept if isinstance(kept, slice) else torch.from_numpy(kept).to(device)
            steps.keep(places)
            rows, has_ended = rows[places], has_ended[places]
            tokens = None if tokens is None else tokens[places]
        logits = steps.next_logits(tokens)[:, vocabulary.columns].float()
        chosen = _best(logits if legal is None else logits.masked_fill(~legal[rows, step], -torch.inf))
        if guidance is not None:
            chosen = _guided(guidance, held.tolist(), logits, chosen)
        _note(sheet, rows, step, logits, chosen)
        tokens = chosen + (vocabulary.columns.start or 0)
        if vocabulary.end is not None:
            has_ended = has_ended | (tokens == vocabulary.end)
    return _written(sheet, members, vocabulary, guidance)


def _kept(limits: NDArray[np.int64], step: int, has_ended: Tensor | None) -> slice | NDArray[np.int64] | None:
    """Which of the held rows to go on with; None: all of them. `has_ended` is None where it is not looked at."""
    is_open = limits > step
    if has_ended is not None:
        goes_on = is_open & ~has_ended.cpu().numpy()
        if np.mean(~goes_on) > KEEP_DONE_SHARE or not goes_on.any():
            return np.flatnonzero(goes_on)
    return None if is_open.all() else slice(0, int(is_open.sum()))


def _legal(members: Sequence[Request], device: torch.device) -> Tensor | None:
    """`(rows, longest, classes)`; beyond a row's end anything is, since nobody reads it."""
    masks = [member.legal for member in members if member.legal is not None]
    if not masks:
        return None
    whole = np.ones((len(members), max(len(mask) for mask in masks), masks[0].shape[1]), dtype=np.bool_)
    for row, mask in enumerate(masks):
        whole[row, : len(mask)] = mask
    return torch.from_numpy(whole).to(device)


def _best(logits: Tensor) -> Tensor:
    """The first highest of each row. On a CPU torch takes ten times as long as numpy."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _guided(guidance: GrammarState, rows: list[int], logits: Tensor, chosen: Tensor) -> Tensor:
    """`chosen`, but the best that is allowed for those rows which may not write it: most may, and need no mask."""
    refused = guidance.write(rows, chosen.tolist())
    if not refused:
        return chosen
    rows, places = [rows[place] for place in refused], torch.tensor(refused, device=logits.device)
    allowed = torch.from_numpy(guidance.allowed(rows)).to(logits.device)
    best = _best(logits[places].masked_fill(~allowed, -torch.inf))
    guidance.write(rows, best.tolist())
    return chosen.index_copy(0, places, best)


def _sheet(members: Sequence[Request], device: torch.device) -> _Sheet:
    shape, legal = (len(members), members[0].most), members[0].legal
    return _Sheet(
        torch.zeros(shape, dtype=torch.int64, device=device),
        torch.zeros(shape, device=device),
        None if legal is None else torch.zeros((*shape, legal.shape[1]), device=device),
    )


def _note(sheet: _Sheet, rows: Tensor, step: int, logits: Tensor, chosen: Tensor) -> None:
    """`logits` `(rows, columns)`, before any was forbidden; `chosen` are columns."""
    total = logits.logsumexp(-1, keepdim=True)
    sheet.columns[rows, step] = chosen
    sheet.logprobs[rows, step] = (logits.gather(-1, chosen[:, None]) - total)[:, 0]
    if sheet.probabilities is not None:
        sheet.probabilities[rows, step] = (logits - total).exp()


def _written(
    sheet: _Sheet, members: Sequence[Request], vocabulary: Vocabulary, guidance: GrammarState | None
) -> list[Written]:
    """Each row up to its end, or its limit."""
    ids = sheet.columns.cpu().numpy() + (vocabulary.columns.start or 0)
    logprobs, lengths = sheet.logprobs.cpu().numpy(), np.array([member.most for member in members])
    is_finished = np.array([member.legal is not None for member in members])
    if vocabulary.end is not None and ids.size:
        is_end = (ids == vocabulary.end) & (np.arange(ids.shape[1]) < lengths[:, None])
        is_finished = is_finished | is_end.any(axis=1)
        lengths = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, lengths)
    is_guided = guidance.is_kept if guidance else [False] * len(members)
    nothing = np.empty((len(members), 0, 0), dtype=np.float32)
    probabilities = nothing if sheet.probabilities is None else sheet.probabilities.cpu().numpy()
    return [
        Written(
            ids[row, :length].tolist(),
            logprobs[row, :length].tolist(),
            bool(is_finished[row]),
            matrix[:length],
            is_guided[row],
        )
        for row, (length, matrix) in enumerate(zip(lengths, probabilities, strict=True))
    ]
