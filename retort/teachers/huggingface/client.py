"""Completion client for a causal language model in this process, through transformers: a teacher for laptops.

The keys and values of the shared prefix are computed once and kept while rows with the same turns arrive, so a row
costs only its own tokens.

At temperature 0, float32 gives the same completions regardless of the batch; in bfloat16 the last bits depend on the
batch, and near-ties can fall either way. Each sampled completion has its own random generator, seeded by the config's
seed, the request's key and the sample's number, so sampling does not depend on the batch either.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from retort.config.teachers import TransformersConfig
from retort.errors import ConfigError
from retort.io.batched import batched
from retort.models.device import choose_device
from retort.models.weights import loading_fault
from retort.teachers.huggingface.contexts import CachedModel, common_prefix
from retort.teachers.huggingface.decoding import BatchRow, Generation, sample_seed
from retort.teachers.requests import Completion, CompletionRequest, Rejection, Turn
from retort.teachers.vllm.engine import scoring
from retort.teachers.vllm.engine.rendering import has_chat_template, render, row_text

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_WINDOW_ROWS = 128
"""Rows that are sorted by length at a time."""
_OWN_TOKENS = 256
"""Tokens per row, without the shared prefix, that a full batch is sized for; batches of longer rows have fewer rows."""
_REQUIRED_PARAMETERS = {"past_key_values", "position_ids", "logits_to_keep"}
"""Parameters that a model's forward pass needs in order to continue from a cached prefix."""


@contextmanager
def open_transformers(
    config: TransformersConfig,
    attempt: int,
    address: str,
    revision: str | None,
    device: Literal["auto", "cpu", "cuda"],
) -> Iterator["TransformersClient"]:
    """Load the model at `address` (anything transformers accepts). `attempt` counts from 0; each one halves the batch.

    Raises ConfigError if there is no such model, it is not causal, or its chat template cannot be used.
    """
    with _as_config_error(config.model):
        settings = AutoConfig.from_pretrained(address, revision=revision, trust_remote_code=False)
        _check_causal(config.model, settings)
        tokenizer = AutoTokenizer.from_pretrained(address, revision=revision, trust_remote_code=False)
        model = _load(config, settings, address, revision)
        client = TransformersClient(config, model, tokenizer, batch_rows=max(1, config.batch_rows >> attempt))
    model.to(choose_device(device, "fp32", shares=1).name).eval()  # type: ignore[arg-type]
    yield client


def _load(config: TransformersConfig, settings: Any, address: str, revision: str | None) -> PreTrainedModel:
    dtype: Any = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    model: PreTrainedModel
    if config.weights == "random":
        own = {} if config.dtype == "auto" else {"dtype": dtype}
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same weights in every process
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False, **own)  # type: ignore[no-untyped-call]
    else:
        model = AutoModelForCausalLM.from_pretrained(
            address,
            revision=revision,
            trust_remote_code=False,
            config=settings,
            use_safetensors=True,
            dtype=dtype,
        )
    return model


def _check_causal(model: str, settings: Any) -> None:
    """Check that the architecture is a causal model. transformers' causal mapping also lists encoders such as BERT,
    which are decoders only if their config says so."""
    kind, found = type(settings), f"teacher.model = '{model}': is no causal language model"
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(settings, "is_decoder", False)
    if architecture is None or encoder or settings.is_encoder_decoder:
        raise ConfigError(f"{found} (its type is '{settings.model_type}'); allowed: GPT, Llama, Qwen and their like")
    if missing := _REQUIRED_PARAMETERS - inspect.signature(architecture.forward).parameters.keys():
        raise ConfigError(
            f"{found} that can be asked here (of type '{settings.model_type}', it takes no {sorted(missing)[0]}); use "
            "kind: vllm"
        )


@contextmanager
def _as_config_error(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RecursionError, SafetensorError) as error:
        raise ConfigError(f"teacher.model = '{model}': cannot be loaded: {loading_fault(error)}") from None


class TransformersClient:
    """See `CompletionClient`. Grammars are not enforced: such completions are unconstrained and left to the parser."""

    def __init__(
        self, config: TransformersConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_rows: int
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._name, self._seed, self._batch_rows = config.model, config.seed, batch_rows
        self._chat = has_chat_template(tokenizer)
        self._opening = [] if self._chat else _opening(tokenizer)
        self._end_tokens = _end_ids(model, tokenizer)
        self._end = scoring.end_token(tokenizer, chat=self._chat)
        self._paths = lru_cache(maxsize=64)(self._tokenize)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._limit = int(limit) if limit else 2**31
        self._cached_model = CachedModel(model)
        if self._cached_model.one_row_only:
            self._batch_rows = 1

    @property
    def facts(self) -> dict[str, Any]:
        device = self._model.device.type
        return {
            "version": f"transformers {transformers.__version__}",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": device,
            "num_gpus": int(device == "cuda"),
            "batch_rows": self._batch_rows,
        }

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        for window in batched(requests, _WINDOW_ROWS):
            groups: dict[tuple[Turn, ...], list[CompletionRequest]] = {}
            for request in window:
                groups.setdefault(request.prompt.shared, []).append(request)
            for shared, members in groups.items():
                yield from self._complete(shared, members)

    def _complete(
        self, shared: tuple[Turn, ...], requests: list[CompletionRequest]
    ) -> Iterator[Completion | Rejection]:
        prefix, before, after, rows = self._render(shared, requests)
        prompts = self._token_ids([f"{prefix}{before}{row}{after}" for row in rows])
        (prefix_ids,) = self._token_ids([prefix])
        groups: dict[tuple[str, ...], list[BatchRow]] = {}
        for request, token_ids in zip(requests, prompts, strict=True):
            needed = max(map(len, self._paths(request.verbalizers, after)), default=1)
            if len(token_ids) + needed > self._limit:
                detail = f"The prompt has {len(token_ids)} tokens, and the model's context is {self._limit}."
                yield Rejection(request.key, "too-long", detail)
                continue
            alike = request.sampling_temperature == 0 or request.verbalizers
            for samples in [request.samples] if alike else [(sample,) for sample in request.samples]:
                groups.setdefault(request.verbalizers, []).append(BatchRow(request, samples, token_ids))
        for verbalizers, members in groups.items():
            for batch in self._batches(members, len(prefix_ids)):
                known = common_prefix(prefix_ids, [row.token_ids for row in batch])
                if verbalizers:
                    yield from self._score(batch, known, verbalizers, after)
                else:
                    yield from self._generate(batch, known, after)

    def _batches(self, rows: list[BatchRow], num_shared: int) -> Iterator[list[BatchRow]]:
        """Batches of rows, longest first, so that a batch that does not fit into memory fails right away."""
        rows = sorted(rows, key=lambda row: -len(row.token_ids))
        while rows:
            own = max(1, len(rows[0].token_ids) - num_shared)
            size = max(1, min(self._batch_rows, self._batch_rows * _OWN_TOKENS // own))
            yield rows[:size]
            rows = rows[size:]

    def _render(self, shared: tuple[Turn, ...], requests: list[CompletionRequest]) -> tuple[str, str, str, list[str]]:
        """See `render`; the last are the rows between `before` and `after`."""
        turns = [asdict(turn) for turn in shared]
        try:
            parts = render(self._tokenizer, turns)
            owns = ((one.prompt.item, [asdict(turn) for turn in one.prompt.earlier]) for one in requests)
            return *parts, [row_text(self._tokenizer, turns, parts, earlier, item) for item, earlier in owns]
        except ValueError as error:
            raise ConfigError(f"teacher.model = '{self._name}': {error}") from None

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [self._opening + token_ids for token_ids in found]

    def _tokenize(self, texts: tuple[str, ...], after: str) -> list[scoring.Path]:
        """The tokens of each text as a completion of a prompt that ends with `after`."""
        return scoring.ended([scoring.continuation(self._tokenizer, after, text) for text in texts], self._end)

    def _generate(self, batch: list[BatchRow], known: list[int], after: str) -> Iterator[Completion]:
        context, logits, cached = self._cached_model.prefill([row.token_ids for row in batch], known)
        generations = {number: self._new_generation(row, cached[number], after) for number, row in enumerate(batch)}
        while True:
            for number, generation in generations.items():
                generation.add(logits[number][-1])
                if generation.finish_reason:
                    yield from generation.completions()
            generations = {
                number: generation for number, generation in generations.items() if not generation.finish_reason
            }
            if not generations:
                return
            last = {number: generation.token_ids[-1:] for number, generation in generations.items()}
            logits = self._cached_model.extend(context, last)

    def _new_generation(self, row: BatchRow, num_cached: int, after: str) -> Generation:
        request = row.request
        choice = request.constraint.choice if request.constraint else None
        paths = self._paths(choice or (), after)
        return Generation(
            row,
            num_cached,
            self._tokenizer,
            limit=min(request.max_tokens, self._limit - len(row.token_ids)),
            end_ids=self._end_tokens,
            one_line=not self._chat,
            choices=dict(zip(paths, choice or (), strict=True)),
            generator=torch.Generator().manual_seed(sample_seed(self._seed, request.key, row.samples[0])),
        )

    def _score(
        self, batch: list[BatchRow], known: list[int], verbalizers: tuple[str, ...], after: str
    ) -> Iterator[Completion]:
        paths = self._paths(verbalizers, after)
        context, logits, cached = self._cached_model.prefill([row.token_ids for row in batch], known)
        nodes = scoring.nodes(paths)
        after_node: dict[scoring.Path, dict[int, Tensor]] = {(): {number: part[0] for number, part in logits.items()}}
        for stem in (node for node in nodes if node and sum(node == other[: len(node)] for other in nodes) == 1):
            steps = self._cached_model.extend(context.copy(), dict.fromkeys(logits, stem), every=True)
            after_node |= {
                stem[: at + 1]: {number: part[at] for number, part in steps.items()} for at in range(len(stem))
            }
        for number, row in enumerate(batch):
            next_token = {
                node: _log_probabilities(after_node[node][number], scoring.children(paths, node)) for node in nodes
            }
            scores = tuple(scoring.log_probabilities(paths, next_token))
            best = verbalizers[scores.index(max(scores))]
            for sample in row.samples:
                yield Completion(row.request.key, sample, best, "stop", len(row.token_ids), cached[number], 0, scores)


def _log_probabilities(logits: Tensor, token_ids: list[int]) -> dict[int, float]:
    return dict(zip(token_ids, logits.log_softmax(-1)[token_ids].tolist(), strict=True))


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a plain text. Those it puts after a text are left out, since
    they would end the prompt before the completion. A chat template writes its own."""
    token_ids, bare = tokenizer.encode("x"), tokenizer.encode("x", add_special_tokens=False)
    return next(token_ids[:at] for at in range(len(token_ids)) if token_ids[at : at + len(bare)] == bare)


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of all end tokens; a model can have several, such as the end of a text and of a chat turn."""
    named = getattr(model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(int(token) for token in [*several, tokenizer.eos_token_id] if token is not None)
