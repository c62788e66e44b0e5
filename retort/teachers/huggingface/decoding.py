"""A completion under way: which token comes next, and when it is finished."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from retort.teachers.requests import Completion, CompletionRequest
from retort.teachers.top_logprobs import TopLogprobs
from retort.teachers.vllm.engine import scoring
from retort.teachers.vllm.engine.toplogprobs import packed, tokenizer_identity


@dataclass(frozen=True, slots=True)
class BatchRow:
    """What is computed for a question in one row of a batch: one completion, or its verbalizers' scores."""

    question: CompletionRequest
    samples: tuple[int, ...]
    """Whose answer it is: at temperature 0 of all samples."""
    token_ids: list[int]
    """Of the whole prompt."""


@dataclass(slots=True)
class Writing:
    """A completion under way."""

    row: BatchRow
    num_cached: int
    tokenizer: PreTrainedTokenizerBase
    limit: int
    """Most tokens that are chosen."""
    ends: frozenset[int]
    one_line: bool
    choices: dict[scoring.Path, str]
    """The texts that are allowed, by their tokens; empty: any."""
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    listed: list[dict[int, float]] = field(default_factory=list)
    """The likeliest next tokens at each of `token_ids`, with their log-probabilities, where they are wanted."""

    def add(self, logits: Tensor) -> None:
        """Choose the next token; `logits` is `(vocab,)`, float32."""
        if self.choices:
            self._add_to_choice(logits)
            return
        self._list(logits, range(len(logits)))
        token = self._chosen(logits)
        self.token_ids.append(token)
        if token in self.ends:
            self._finish("stop", self.token_ids[:-1])
        elif self.one_line and "\n" in str(self.tokenizer.decode([token])):
            self._finish("stop", self.token_ids)
            self.text = self.text.partition("\n")[0]
        elif len(self.token_ids) == self.limit:
            self._finish("length", self.token_ids)

    def _add_to_choice(self, logits: Tensor) -> None:
        """As soon as only one text is left, the rest of it is certain and need not be computed."""
        written = tuple(self.token_ids)
        children = scoring.children(list(self.choices), written)
        self._list(logits[children], children)
        self.token_ids.append(children[self._chosen(logits[children])])
        left = [path for path in self.choices if path[: len(written) + 1] == tuple(self.token_ids)]
        if len(left) == 1:
            for token in left[0][len(self.token_ids) :]:
                self._list(logits.new_zeros(1), [token])
            self.token_ids, self.text, self.finish_reason = list(left[0]), self.choices[left[0]], "stop"
        elif len(self.token_ids) == self.limit:
            self._finish("length", self.token_ids)

    def _list(self, logits: Tensor, token_ids: Sequence[int]) -> None:
        """The likeliest of the `token_ids`, which `logits`, of the same length, are of: of those that may come next."""
        if k := self.row.question.top_logprobs:
            logprobs, places = logits.log_softmax(-1).topk(min(k, len(logits)))
            found = zip(places.tolist(), logprobs.tolist(), strict=True)
            self.listed.append({token_ids[place]: logprob for place, logprob in found})

    def _chosen(self, logits: Tensor) -> int:
        question = self.row.question
        if question.sampling_temperature == 0:
            return int(logits.argmax())
        return sampled(logits, question.sampling_temperature, question.top_p, self.generator)

    def _finish(self, reason: Literal["stop", "length"], token_ids: list[int]) -> None:
        # Some tokenizers' own settings would take spaces away before punctuation.
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.text = str(text)
        self.finish_reason = reason

    def answers(self) -> Iterator[Completion]:
        question, num_prompt = self.row.question, len(self.row.token_ids)
        usage, top = (num_prompt, self.num_cached, len(self.token_ids)), self._top()
        for sample in self.row.samples:
            yield Completion(question.key, sample, self.text, self.finish_reason, *usage, top=top)

    def _top(self) -> TopLogprobs | None:
        if not self.listed:
            return None
        k = self.row.question.top_logprobs
        return TopLogprobs(k, tokenizer_identity(self.tokenizer), *packed(self.token_ids, self.listed, k))


def sampled(logits: Tensor, sampling_temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token drawn from the fewest tokens that have the share `top_p` together (nucleus sampling, Holtzman et al.
    2020), by inversion: one random number a token, whatever the vocabulary. `logits` is `(vocab,)`."""
    probabilities, order = (logits.double() / sampling_temperature).softmax(-1).sort(descending=True, stable=True)
    cumulative = probabilities.cumsum(0)
    nucleus = cumulative[: int((cumulative < top_p).sum()) + 1]
    point = torch.rand((), generator=generator, dtype=torch.float64) * nucleus[-1]
    return int(order[torch.searchsorted(nucleus, point, right=True)])


def seed_of(seed: int, key: bytes, sample: int) -> int:
    digest = hashlib.sha256(f"{seed} {sample} ".encode() + key).digest()
    return int.from_bytes(digest[:8]) >> 1
