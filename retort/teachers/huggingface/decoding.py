"""Decoding: chooses the next token of a completion and decides when it is finished."""

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
from retort.teachers.vllm.engine.toplogprobs import pack, tokenizer_identity


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One row of a batch: computes one completion of a request, or the scores of its verbalizers."""

    request: CompletionRequest
    samples: tuple[int, ...]
    """The samples that share the result: all of them at temperature 0."""
    token_ids: list[int]
    """Tokens of the whole prompt."""


@dataclass(slots=True)
class Generation:
    """A completion that is being generated."""

    row: BatchRow
    num_cached: int
    tokenizer: PreTrainedTokenizerBase
    limit: int
    """Maximum number of generated tokens."""
    end_ids: frozenset[int]
    one_line: bool
    choices: dict[scoring.Path, str]
    """The allowed texts, by their tokens; empty if any text is allowed."""
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    top_tokens: list[dict[int, float]] = field(default_factory=list)
    """Log-probabilities of the likeliest next tokens at each of `token_ids`, if they were requested."""
    logprob: float = 0.0
    """Sum of the log-probabilities of `token_ids`, if those lists were requested."""

    def add(self, logits: Tensor) -> None:
        """Choose the next token; `logits` is `(vocab,)`, float32."""
        if self.choices:
            self._add_to_choice(logits)
            return
        token = self._choose(logits)
        self._record_top(logits, range(len(logits)), token)
        self.token_ids.append(token)
        if token in self.end_ids:
            self._finish("stop", self.token_ids[:-1])
        elif self.one_line and "\n" in str(self.tokenizer.decode([token])):
            self._finish("stop", self.token_ids)
            self.text = self.text.partition("\n")[0]
        elif len(self.token_ids) == self.limit:
            self._finish("length", self.token_ids)

    def _add_to_choice(self, logits: Tensor) -> None:
        """Choose the next token among the allowed texts. Once only one text is left, its remaining tokens are certain
        and need not be computed."""
        written = tuple(self.token_ids)
        children = scoring.children(list(self.choices), written)
        chosen = self._choose(logits[children])
        self._record_top(logits[children], children, chosen)
        self.token_ids.append(children[chosen])
        left = [path for path in self.choices if path[: len(written) + 1] == tuple(self.token_ids)]
        if len(left) == 1:
            for token in left[0][len(self.token_ids) :]:
                self._record_top(logits.new_zeros(1), [token], 0)
            self.token_ids, self.text, self.finish_reason = list(left[0]), self.choices[left[0]], "stop"
        elif len(self.token_ids) == self.limit:
            self._finish("length", self.token_ids)

    def _record_top(self, logits: Tensor, token_ids: Sequence[int], chosen: int) -> None:
        """Record the likeliest of the tokens that may come next; `logits[i]` belongs to `token_ids[i]`, and
        `token_ids[chosen]` comes next."""
        if k := self.row.request.top_logprobs:
            of_all = logits.log_softmax(-1)
            self.logprob += float(of_all[chosen])
            logprobs, places = of_all.topk(min(k, len(logits)))
            found = zip(places.tolist(), logprobs.tolist(), strict=True)
            self.top_tokens.append({token_ids[place]: logprob for place, logprob in found})

    def _choose(self, logits: Tensor) -> int:
        request = self.row.request
        if not request.sampling_temperature:
            return int(logits.argmax())
        return sample_token(logits, request.sampling_temperature, request.top_p, self.generator)

    def _finish(self, reason: Literal["stop", "length"], token_ids: list[int]) -> None:
        # Some tokenizers' default settings would remove spaces before punctuation.
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.text = str(text)
        self.finish_reason = reason

    def completions(self) -> Iterator[Completion]:
        request, num_prompt = self.row.request, len(self.row.token_ids)
        usage, top = (num_prompt, self.num_cached, len(self.token_ids)), self._top()
        logprob = self.logprob if top else None
        for sample in self.row.samples:
            yield Completion(request.key, sample, self.text, self.finish_reason, *usage, top=top, logprob=logprob)

    def _top(self) -> TopLogprobs | None:
        if not self.top_tokens:
            return None
        k = self.row.request.top_logprobs
        return TopLogprobs(k, tokenizer_identity(self.tokenizer), *pack(self.token_ids, self.top_tokens, k))


def sample_token(logits: Tensor, sampling_temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Nucleus sampling (Holtzman et al. 2020): draw from the smallest set of tokens with total probability `top_p`.
    Samples by inversion, so each token takes one random number, whatever the vocabulary. `logits` is `(vocab,)`."""
    probabilities, order = (logits.double() / sampling_temperature).softmax(-1).sort(descending=True, stable=True)
    cumulative = probabilities.cumsum(0)
    nucleus = cumulative[: int((cumulative < top_p).sum()) + 1]
    point = torch.rand((), generator=generator, dtype=torch.float64) * nucleus[-1]
    return int(order[torch.searchsorted(nucleus, point, right=True)])


def sample_seed(seed: int, key: bytes, sample: int) -> int:
    digest = hashlib.sha256(f"{seed} {sample} ".encode() + key).digest()
    return int.from_bytes(digest[:8]) >> 1
