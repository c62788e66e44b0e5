"""Encoders with a linear head: texts to token ids, and logits to the problem's units.

For both kinds of heads, a *unit* (a word, the intent, or the whole text) has a position in the row's tokens at which
its logits are read. In tagging, a unit without a word (the intent) is read at the first special token.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from retort.errors import ConfigError
from retort.models.weights import Weights, loading_fault
from retort.problems import Problem
from retort.students.architectures import loaded
from retort.students.training_data import padded_with_mask

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_ARCHITECTURES: dict[str, Any] = {
    "token-classification": AutoModelForTokenClassification,
    "sequence-classification": AutoModelForSequenceClassification,
}


_UNKNOWN = -1.0e4
"""The logit of a class that a model was not trained on: its probability is 0, and it is finite in every precision."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    token_ids: NDArray[np.int32]
    """`(length,)`, special tokens included."""
    positions: NDArray[np.int32]
    """`(units,)`: the token at which each unit's logits are read; -1 for a unit that was cut off. For sequence
    classification, the unit's number."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model with its tokenizer and its maximum number of tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: str
    max_length: int
    columns: tuple[int, ...] | None = None
    """For each output that the problem needs, its index in the model's logits, -1 if it is unknown; None: in the same
    order."""
    has_sigmoids: bool = False
    """Whether each output decides by itself, see `Problem.sigmoids`."""

    def encode(self, problem: Problem, texts: list[str]) -> list[EncodedRow]:
        words = [problem.words(text) for text in texts]
        batch = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.max_length)
        return [self._row(batch, index, problem.sites(len(row)), len(row)) for index, row in enumerate(words)]

    def _row(self, batch: Any, index: int, sites: NDArray[np.int64], num_words: int) -> EncodedRow:
        token_ids = np.asarray(batch["input_ids"][index], dtype=np.int32)
        if self.kind == "sequence-classification":
            return EncodedRow(token_ids, np.arange(len(sites), dtype=np.int32))
        positions = np.full(num_words + 1, -1, dtype=np.int32)
        positions[0] = 0
        for position, word in reversed(list(enumerate(batch.word_ids(index)))):
            if word is not None:
                positions[word + 1] = position  # reversed, so the word's first token stays
        return EncodedRow(token_ids, positions[sites])

    def tensors(self, token_ids: Sequence[NDArray[np.int32]], multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, `(rows, length)` each, with `length` a multiple of `multiple`."""
        return padded_with_mask(token_ids, self.tokenizer.pad_token_id or 0, multiple)

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`(rows, length, classes)`, or `(rows, classes)` for sequence classification; `(rows, outputs, 2)` if each
        output decides by itself: the softmax of 0 and its logit is the logit's sigmoid."""
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        if self.columns is not None:
            logits = torch.nn.functional.pad(logits, (0, 1), value=_UNKNOWN)[..., list(self.columns)]
        if self.has_sigmoids:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return logits

    def unit_logits(self, rows: list[EncodedRow]) -> Tensor:
        """The logits of all units that were not cut off, row by row, `(units of all rows, classes)` in fp32."""
        device = self.model.device
        logits = self.logits(*(tensor.to(device) for tensor in self.tensors([row.token_ids for row in rows])))
        if logits.ndim == 2:
            return logits.float()
        flat = [index * logits.shape[1] + row.positions[row.positions >= 0] for index, row in enumerate(rows)]
        return logits.flatten(0, 1)[torch.from_numpy(np.concatenate(flat)).long().to(device)].float()


def new_encoder(kind: str, weights: Weights, *, pretrained: bool, problem: Problem, max_length: int) -> Encoder:
    """A pretrained or random body with a random head for the problem. Seed torch first.

    Raises ConfigError if the weights cannot be loaded for this kind of student.
    """
    labels = dict(enumerate(problem.sigmoids or problem.classes))
    with as_config_error(weights):
        config = AutoConfig.from_pretrained(
            weights.address,
            revision=weights.revision,
            trust_remote_code=False,
            num_labels=len(labels),
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
            problem_type="multi_label_classification" if problem.sigmoids else None,
        )
        use_fused_attention(config)
        tokenizer = AutoTokenizer.from_pretrained(weights.address, revision=weights.revision, trust_remote_code=False)
        model = loaded(_ARCHITECTURES[kind], weights, config, pretrained)
    limit = _length_limit(config, max_length)
    return Encoder(model, tokenizer, kind, limit, has_sigmoids=bool(problem.sigmoids))


def load_encoder(folder: Path, kind: str, max_length: int, problem: Problem | None = None) -> Encoder:
    """A trained student, from its saved folder. Outputs are matched by name, should the problem's classes have changed
    since; those that the student does not know get a probability of 0."""
    model = _ARCHITECTURES[kind].from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    known = class_names(model)
    wanted = known if problem is None else problem.sigmoids or problem.classes
    columns = None
    if wanted != known:
        columns = tuple(known.index(name) if name in known else -1 for name in wanted)
    limit = _length_limit(model.config, max_length)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    has_sigmoids = problem is not None and bool(problem.sigmoids)
    return Encoder(model, tokenizer, kind, limit, columns, has_sigmoids)


def class_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The classes of a trained student, in the order of its logits."""
    names: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    return tuple(names[index] for index in sorted(names))


def continue_from(encoder: Encoder, folder: Path) -> bool:
    """Loads the weights of the trained student in `folder` into `encoder`: all of them if both have the same classes,
    else all but the head. Returns whether the head was loaded.

    Raises ConfigError if the two differ in architecture or vocabulary.
    """
    other = load_encoder(folder, encoder.kind, encoder.max_length)
    same_head = class_names(other.model) == class_names(encoder.model)
    theirs, ours = other.model.state_dict(), encoder.model.state_dict()
    body = f"{encoder.model.base_model_prefix}."
    if not same_head:
        theirs, ours = ({k: v for k, v in one.items() if k.startswith(body)} for one in (theirs, ours))
    if not theirs or {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in ours.items()}:
        raise ConfigError(_OTHER_START.format("architecture", *(_described(one.model) for one in (other, encoder))))
    if other.tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        sizes = (f"{len(one.tokenizer)} tokens" for one in (other, encoder))
        raise ConfigError(_OTHER_START.format("vocabulary", *sizes))
    encoder.model.load_state_dict(theirs, strict=same_head)
    return same_head


_OTHER_START = (
    "student.warm_start: the champion has another {} than student.model ({} against {}), so its weights are no start; "
    "give the champion's student.model, or warm_start: false"
)


def _described(model: PreTrainedModel) -> str:
    return f"{model.config.model_type} of {model.num_parameters():,} parameters"


def encode_all(encoder: Encoder, problem: Problem, texts: Iterable[str], chunk: int = 1024) -> Iterator[EncodedRow]:
    """Encodes a stream in chunks, which keeps the fast tokenizer busy and memory bounded."""
    pending: list[str] = []
    for text in texts:
        pending.append(text)
        if len(pending) == chunk:
            yield from encoder.encode(problem, pending)
            pending = []
    if pending:
        yield from encoder.encode(problem, pending)


def use_fused_attention(config: Any) -> None:
    """Turns off dropout inside attention, which would make torch fall back to a much slower kernel."""
    for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)


def _length_limit(config: Any, max_length: int) -> int:
    return min(max_length, getattr(config, "max_position_embeddings", None) or max_length)


LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RecursionError, SafetensorError)
"""What transformers raises for a model that it cannot load."""


@contextlib.contextmanager
def as_config_error(weights: Weights) -> Iterator[None]:
    """Turns transformers' errors on loading `weights` into a ConfigError of one sentence."""
    try:
        yield
    except LOADING_ERRORS as error:
        raise ConfigError(f"student.model = '{weights.address}': cannot be loaded: {loading_fault(error)}") from None
