"""Batched greedy decoding: rows of similar length together, with a key-value cache, dropping rows that are done.

It gives the tokens of `model.generate(do_sample=False, num_beams=1)`, up to rounding, which depends on the composition
of a batch.
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
"""Finished rows are dropped once they exceed this share of the batch: dropping copies the caches of all others."""
LOOK_STEPS = {"cpu": 1, "cuda": 8}
"""Number of steps between checks for finished rows: each check synchronizes with a GPU."""
STEP_SCALE = {"cpu": 4, "cuda": 64}
"""Size of a decoding batch relative to one of a plain forward pass: a step computes only one token per row, and is
dominated by overhead unless there are hundreds of rows."""
ROOM_TOKENS = 32
"""Spare tokens that are allocated each time a cache grows."""


@dataclass(frozen=True, slots=True)
class Request:
    """One text to generate a label for."""

    token_ids: NDArray[np.int64]
    """`(length,)`: the source or the prompt."""
    max_tokens: int
    """Maximum number of tokens to generate."""
    legal: Bools | None = None
    """For class targets `(max_tokens, classes)`: the allowed classes; exactly `max_tokens` tokens are generated."""
    grammar: str | None = None
    """For text targets: the grammar to follow, see `Problem.grammar`; None: unconstrained."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The token ids that decoding needs to know."""

    pad: int
    end: int | None
    """None if the number of tokens is known in advance."""
    columns: slice = field(default_factory=lambda: slice(None))
    """Token ids that may be generated."""


class Steps(Protocol):
    """A batch in the process of being decoded."""

    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Logits `(rows, vocab)` of the next token after `tokens` `(rows,)`; None at the first step."""
        ...

    def keep(self, rows: Tensor | slice) -> None:
        """Keeps only these rows; a slice copies nothing."""
        ...


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, `(rows, heads, tokens, width)`, as views of larger tensors, so that a step appends
    its token without copying the others."""

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
    """A copy of `(rows, heads, length, width)` with room for `tokens` tokens; those beyond `length` are undefined."""
    wider = states.new_empty((*states.shape[:2], tokens, states.shape[3]))
    wider[:, :, : states.shape[2]] = states
    return wider


class Seq2SeqSteps:
    """Decoding steps of an encoder-decoder."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int) -> None:
        """`ids` and `mask` are `(rows, length)`, padded on the right."""
        self._model = model
        self._first = torch.full((len(ids),), start, device=ids.device)
        encoder: Any = model.get_encoder()
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        self._states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        # Otherwise the model builds it at every step, and synchronizes with the GPU to see whether there is padding.
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
    """Decoding steps of a decoder-only model."""

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
    grammar: Grammar | None = None,
) -> list[Written]:
    """Generates one answer per request, in order.

    `start` is an encoder-decoder's start token; None for a decoder-only model. Without `grammar`, the requests'
    grammars are ignored. A batch has `rows x (longest source + longest target) <= batch_tokens`, at least one row; for
    text, whose length is not known in advance, only the source counts.
    """
    known = vocabulary.end is None
    lengths = np.array([(len(r.token_ids), r.max_tokens if known else 0) for r in requests], dtype=np.int64)
    result: dict[int, Written] = {}
    for indices in token_batches(lengths.reshape(-1, 2), batch_tokens):
        batch = sorted(indices.tolist(), key=lambda index: -requests[index].max_tokens)
        members = [requests[index] for index in batch]
        with device.autocast():
            ids, mask = _padded(members, vocabulary.pad, model.device, on_the_left=start is None)
            steps: Steps = CausalSteps(model, ids, mask) if start is None else Seq2SeqSteps(model, ids, mask, start)
            result.update(zip(batch, _write(steps, members, vocabulary, model.device, grammar), strict=True))
    return [result[index] for index in range(len(requests))]


def _padded(members: Sequence[Request], pad: int, device: torch.device, *, on_the_left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, `(rows, length)` each."""
    step = -1 if on_the_left else 1
    both = padded_with_mask([member.token_ids[::step] for member in members], pad)
    ids, mask = (tensor.flip(1) if on_the_left else tensor for tensor in both)
    return ids.to(device), mask.to(device)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The output of all rows of a batch, kept on the device so that no step waits for a copy."""

    columns: Tensor
    """`(rows, longest limit)`: the chosen tokens, as indices into `Vocabulary.columns`."""
    logprobs: Tensor
    """`(rows, longest limit)`: their natural log-probabilities."""
    probabilities: Tensor | None
    """`(rows, longest limit, classes)` for class targets."""


def _write(
    steps: Steps, members: Sequence[Request], vocabulary: Vocabulary, device: torch.device, grammar: Grammar | None
) -> list[Written]:
    """Decodes one batch. `members` are sorted by descending limit, so that rows which reach theirs are the last ones
    and can be dropped without a copy. `rows`, `held` and `limits` describe the members that are still being decoded.
    """
    state = grammar.batch([member.grammar for member in members]) if grammar else None
    held = np.arange(len(members))
    limits = np.array([member.max_tokens for member in members])
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
        if state is not None:
            chosen = _held_to_grammar(state, held.tolist(), logits, chosen)
        _note(sheet, rows, step, logits, chosen)
        tokens = chosen + (vocabulary.columns.start or 0)
        if vocabulary.end is not None:
            has_ended = has_ended | (tokens == vocabulary.end)
    return _written(sheet, members, vocabulary, state)


def _kept(limits: NDArray[np.int64], step: int, has_ended: Tensor | None) -> slice | NDArray[np.int64] | None:
    """Which of the held rows to continue with; None: all. `has_ended` `(rows,)` is None if it is not to be checked."""
    is_open = limits > step
    if has_ended is not None:
        goes_on = is_open & ~has_ended.cpu().numpy()
        if np.mean(~goes_on) > KEEP_DONE_SHARE or not goes_on.any():
            return np.flatnonzero(goes_on)
    return None if is_open.all() else slice(0, int(is_open.sum()))


def _legal(members: Sequence[Request], device: torch.device) -> Tensor | None:
    """Allowed classes, `(rows, longest, classes)`; True beyond a row's end, which is never read."""
    masks = [member.legal for member in members if member.legal is not None]
    if not masks:
        return None
    whole = np.ones((len(members), max(len(mask) for mask in masks), masks[0].shape[1]), dtype=np.bool_)
    for row, mask in enumerate(masks):
        whole[row, : len(mask)] = mask
    return torch.from_numpy(whole).to(device)


def _best(logits: Tensor) -> Tensor:
    """Argmax of each row `(rows, columns)`, the first of equals. On a CPU numpy is ten times as fast as torch."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _held_to_grammar(state: GrammarState, rows: list[int], logits: Tensor, chosen: Tensor) -> Tensor:
    """Replaces illegal choices by the most likely legal token. Masks are computed for these rows only: most choices are
    legal. `logits` is `(rows, vocab)`, `chosen` `(rows,)`."""
    refused = state.write(rows, chosen.tolist())
    if not refused:
        return chosen
    rows, places = [rows[place] for place in refused], torch.tensor(refused, device=logits.device)
    allowed = torch.from_numpy(state.allowed(rows)).to(logits.device)
    best = _best(logits[places].masked_fill(~allowed, -torch.inf))
    state.write(rows, best.tolist())
    return chosen.index_copy(0, places, best)


def _sheet(members: Sequence[Request], device: torch.device) -> _Sheet:
    shape, legal = (len(members), members[0].max_tokens), members[0].legal
    return _Sheet(
        torch.zeros(shape, dtype=torch.int64, device=device),
        torch.zeros(shape, device=device),
        None if legal is None else torch.zeros((*shape, legal.shape[1]), device=device),
    )


def _note(sheet: _Sheet, rows: Tensor, step: int, logits: Tensor, chosen: Tensor) -> None:
    """Records a step: `chosen` columns `(rows,)` and the unmasked `logits` `(rows, columns)`."""
    total = logits.logsumexp(-1, keepdim=True)
    sheet.columns[rows, step] = chosen
    sheet.logprobs[rows, step] = (logits.gather(-1, chosen[:, None]) - total)[:, 0]
    if sheet.probabilities is not None:
        sheet.probabilities[rows, step] = (logits - total).exp()


def _written(
    sheet: _Sheet, members: Sequence[Request], vocabulary: Vocabulary, state: GrammarState | None
) -> list[Written]:
    """The output of each row up to its end token or its limit."""
    ids = sheet.columns.cpu().numpy() + (vocabulary.columns.start or 0)
    logprobs, lengths = sheet.logprobs.cpu().numpy(), np.array([member.max_tokens for member in members])
    is_finished = np.array([member.legal is not None for member in members])
    if vocabulary.end is not None and ids.size:
        is_end = (ids == vocabulary.end) & (np.arange(ids.shape[1]) < lengths[:, None])
        is_finished = is_finished | is_end.any(axis=1)
        lengths = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, lengths)
    is_guided = state.is_kept if state else [False] * len(members)
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
