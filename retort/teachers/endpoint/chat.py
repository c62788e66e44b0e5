"""The chat completions protocol of OpenAI-compatible servers: builds request bodies and parses responses.

No `stop` is sent although a label is one line: chat models end their turn themselves, many begin it with an empty line,
which a stop at the line end would turn into an empty completion, and some vendors reject the parameter. Whatever
follows the label is left to the parser.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Self
from zlib import crc32

from retort.config import EndpointConfig, VllmConfig
from retort.config.endpoint import ConstraintStyle
from retort.config.teachers import LlmTeacherConfig
from retort.data.answers import text_of, with_calls
from retort.teachers.endpoint.firsttoken import first_token_scores
from retort.teachers.endpoint.structured import constraint_settings, unwrap_label, wrapping
from retort.teachers.requests import INTERRUPTED, Completion, CompletionRequest, Turn

MAX_ERROR_CHARACTERS = 300
TOP_LOGPROBS = 20
"""The most alternatives that OpenAI and vLLM list."""
MOST_LOGPROB = 0.01
"""Some servers round up to a little more than 0."""


class MalformedResponse(Exception):
    """A response with status 200 that holds no chat completion; `str(error)` says why."""


class MissingLogprobs(Exception):
    """A chat completion without the requested log-probabilities."""


class BodyWriter:
    """Writes the HTTP bodies of one model's requests, in the words of its server."""

    def __init__(
        self,
        model: str,
        style: ConstraintStyle,
        *,
        token_limit_name: str = "max_tokens",
        seed_name: str | None = "seed",
        further: Mapping[str, Any] = {},
    ) -> None:
        """`further` are fields that are sent as they are."""
        self._start = f'{{"model": {json.dumps(model)}, "messages": ['.encode()
        self._style, self._token_limit_name, self._seed_name = style, token_limit_name, seed_name
        self._further = dict(further)
        self._shared: tuple[Turn, ...] | None = None
        self._opening, self._shared_characters = b"", 0

    @classmethod
    def of(cls, config: LlmTeacherConfig) -> Self:
        """For a teacher that is asked over HTTP or through batch files."""
        if not isinstance(config, EndpointConfig):
            return cls(config.model, "vllm" if isinstance(config, VllmConfig) else "none")
        return cls(
            config.model,
            config.constraint_style,
            token_limit_name=config.token_limit_name,
            seed_name=config.seed_name,
            further=config.body,
        )

    def body(self, request: CompletionRequest, samples: tuple[int, ...]) -> bytes:
        """The JSON body that requests `samples`. Up to the row, it is the same bytes for all rows with the same shared
        turns, which are serialized only once while the same object is passed."""
        if request.prompt.shared is not self._shared:
            self._share(request.prompt.shared)
        settings = json.dumps(self._settings(request, samples))
        own = [*request.prompt.earlier, Turn("user", request.prompt.item)]
        row = ", ".join(json.dumps({"role": turn.role, "content": turn.content}) for turn in own)
        return self._opening + f"{row}], {settings[1:]}".encode()

    def num_tokens(self, request: CompletionRequest) -> int:
        """Estimated tokens of the prompt, at four characters per token."""
        if request.prompt.shared is not self._shared:
            self._share(request.prompt.shared)
        own = sum(len(turn.content) for turn in request.prompt.earlier) + len(request.prompt.item)
        return (self._shared_characters + own) // 4 + 1

    def _share(self, shared: tuple[Turn, ...]) -> None:
        turns = [json.dumps({"role": turn.role, "content": turn.content}) + ", " for turn in shared]
        self._shared, self._opening = shared, self._start + "".join(turns).encode()
        self._shared_characters = sum(len(turn.content) for turn in shared)

    def _settings(self, request: CompletionRequest, samples: tuple[int, ...]) -> dict[str, Any]:
        """All parameters except model and messages; those that equal the protocol's defaults are omitted."""
        temperature, limit = request.sampling_temperature, self._token_limit_name
        if request.verbalizers:
            # Temperature 1 and no constraint, because some servers apply both before computing log-probabilities.
            chosen = {} if temperature is None else {"temperature": 1.0}
            return chosen | {limit: 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS} | self._further
        settings: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        settings[limit] = request.max_tokens
        if request.top_p < 1:
            settings["top_p"] = request.top_p
        if len(samples) > 1:
            settings["n"] = len(samples)
        if temperature and self._seed_name:
            settings[self._seed_name] = seed(request.key, samples[0])
        return settings | constraint_settings(request.constraint, self._style) | self._further


def seed(key: bytes, sample: int) -> int:
    """A seed in [0, 2**31) that differs by row, attempt and sample, and is the same in every run."""
    return (crc32(key) + sample) % 2**31


def parse_response(
    raw: bytes, request: CompletionRequest, samples: tuple[int, ...], style: ConstraintStyle
) -> list[Completion]:
    """The completions in a response's body, for the first of `samples`: at least one, and fewer than requested if the
    server does not support `n`.

    Usage covers the whole response, so the first sample carries the prompt tokens, and the completion tokens are split
    evenly. Raises MalformedResponse, MissingLogprobs.
    """
    response = _json_object(raw)
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        error = f", but an error: {response['error']}" if response.get("error") else ""
        raise MalformedResponse(f"it holds no choices{error}"[:MAX_ERROR_CHARACTERS])
    read = [_said(choice) for choice in choices[: len(samples)]]
    prompt_tokens, cached_tokens, completion_tokens = _usage(response.get("usage"))
    if request.verbalizers:
        scores = first_token_scores(request.verbalizers, _alternatives(choices[0]))
        best = request.verbalizers[max(range(len(scores)), key=scores.__getitem__)]
        tokens = (prompt_tokens, cached_tokens, completion_tokens)
        return [Completion(request.key, samples[0], best, "stop", *tokens, scores)]
    wrapped = wrapping(request.constraint, style)
    each, rest = divmod(completion_tokens, len(read))
    return [
        Completion(
            request.key,
            sample,
            unwrap_label(text, wrapped) if wrapped else text,
            finish_reason,
            *((prompt_tokens, cached_tokens, each + rest) if sample == samples[0] else (0, 0, each)),
        )
        for sample, (text, finish_reason) in zip(samples, read, strict=False)
    ]


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        response = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse("it is not JSON") from error
    if not isinstance(response, dict):
        raise MalformedResponse("it is no JSON object")
    return response


def _said(choice: Any) -> tuple[str, str | None]:
    """(text, finish_reason). Thoughts that a server keeps apart are no part of the text, but a completion that is
    nothing else is written as thoughts that do not end. Raises MalformedResponse for one that was broken off."""
    text, finish_reason = _choice(choice)
    if finish_reason in INTERRUPTED:
        raise MalformedResponse(f"it was broken off (finish_reason '{finish_reason}')")
    thoughts = "" if text else choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
    return f"<think>{thoughts}" if thoughts else text, finish_reason


def _choice(choice: object) -> tuple[str, str | None]:
    """(text, finish_reason). Empty text is valid: the model may have refused, or reasoned until its limit."""
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    text = "" if content is None else text_of(content)
    if not isinstance(choice, dict) or not isinstance(message, dict) or text is None:
        raise MalformedResponse("a choice holds no message with a text")
    return with_calls(text, message.get("tool_calls"), choice.get("finish_reason"))


def _alternatives(choice: Any) -> list[tuple[str, float]]:
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        alternatives = [(str(one["token"]), float(one["logprob"])) for one in listed]
    except (LookupError, TypeError, ValueError, OverflowError):
        alternatives = []
    if not all(math.isfinite(value) and value < MOST_LOGPROB for _, value in alternatives):
        raise MissingLogprobs("its log-probabilities are none: they are above 0 or no numbers")
    if not alternatives:
        raise MissingLogprobs("it holds no log-probabilities")
    return alternatives


def _usage(usage: object) -> tuple[int, int, int]:
    """(prompt, cached prompt, completion) tokens; 0 where the server reports none.

    Thoughts are billed as completion tokens. Some vendors (Gemini, xAI) leave them out of these and count them in the
    total only.
    """
    if not isinstance(usage, dict):
        return 0, 0, 0
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return prompt, _count(cached), max(completion, _count(usage.get("total_tokens")) - prompt)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
