"""The chat completions protocol of OpenAI-compatible servers: builds request bodies and parses responses.

No `stop` is sent although a label is one line: chat models end their turn themselves, many begin it with an empty line,
which a stop at the line end would turn into an empty completion, and some vendors reject the parameter. Whatever
follows the label is left to the parser.
"""

import json
from typing import Any, Literal
from zlib import crc32

from retort.problems import Constraint
from retort.problems.turns import ended_by, said
from retort.teachers.endpoint.firsttoken import first_token_scores
from retort.teachers.requests import Completion, CompletionRequest, Turn

ConstraintStyle = Literal["none", "vllm", "json-schema"]
TOP_LOGPROBS = 20
"""The most alternatives that OpenAI and vLLM list."""


class MalformedResponse(Exception):
    """A response with status 200 that holds no chat completion; `str(error)` says why."""


class MissingLogprobs(Exception):
    """A chat completion without the requested log-probabilities."""


class BodyWriter:
    """Writes the HTTP bodies of one model's requests."""

    def __init__(self, model: str, style: ConstraintStyle) -> None:
        self._start = f'{{"model": {json.dumps(model)}, "messages": ['.encode()
        self._style = style
        self._shared: tuple[Turn, ...] | None = None
        self._opening, self._shared_characters = b"", 0

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
        if request.verbalizers:
            # Temperature 1 and no constraint, because some servers apply both before computing log-probabilities.
            return {"temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        settings: dict[str, Any] = {"temperature": request.sampling_temperature, "max_tokens": request.max_tokens}
        if request.top_p < 1:
            settings["top_p"] = request.top_p
        if len(samples) > 1:
            settings["n"] = len(samples)
        if request.sampling_temperature > 0:
            settings["seed"] = seed(request.key, samples[0])
        return settings | constraint_settings(request.constraint, self._style)


def seed(key: bytes, sample: int) -> int:
    """A seed in [0, 2**31) that differs by row, attempt and sample, and is the same in every run."""
    return (crc32(key) + sample) % 2**31


def constraint_settings(constraint: Constraint | None, style: ConstraintStyle) -> dict[str, Any]:
    """The body fields that constrain decoding to legal labels; empty for a grammar with the json-schema style, since
    no JSON schema can express one."""
    if constraint is None or style == "none":
        return {}
    if style == "vllm":
        if constraint.choice is not None:
            return {"structured_outputs": {"choice": constraint.choice}}
        return {"structured_outputs": {"grammar": constraint.grammar}}
    if constraint.choice is None:
        return {}
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": constraint.choice}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}
    }


def unwrap_label(text: str) -> str:
    """The label in `{"label": ...}`; any other text (truncated, or not following the schema) is returned unchanged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    label = value.get("label") if isinstance(value, dict) and len(value) == 1 else None
    return label if isinstance(label, str) else text


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
        raise MalformedResponse("it holds no choices")
    read = [_choice(choice) for choice in choices[: len(samples)]]
    prompt_tokens, cached_tokens, completion_tokens = _usage(response.get("usage"))
    if request.verbalizers:
        scores = first_token_scores(request.verbalizers, _alternatives(choices[0]))
        best = request.verbalizers[max(range(len(scores)), key=scores.__getitem__)]
        tokens = (prompt_tokens, cached_tokens, completion_tokens)
        return [Completion(request.key, samples[0], best, "stop", *tokens, scores)]
    unwrap = style == "json-schema" and request.constraint is not None and request.constraint.choice is not None
    each, rest = divmod(completion_tokens, len(read))
    return [
        Completion(
            request.key,
            sample,
            unwrap_label(text) if unwrap else text,
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


def _choice(choice: object) -> tuple[str, str | None]:
    """(text, finish_reason). Empty text is valid: the model may have refused, or reasoned until its limit."""
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    if isinstance(message, dict) and message.get("tool_calls"):
        content = said(message)
    if not isinstance(choice, dict) or not isinstance(content, str | None):
        raise MalformedResponse("a choice holds no message with a text")
    finish_reason = choice.get("finish_reason")
    return content or "", ended_by(message, finish_reason if isinstance(finish_reason, str) else None)


def _alternatives(choice: Any) -> list[tuple[str, float]]:
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        alternatives = [(str(one["token"]), float(one["logprob"])) for one in listed]
    except (LookupError, TypeError, ValueError):
        alternatives = []
    if not alternatives:
        raise MissingLogprobs("it holds no log-probabilities")
    return alternatives


def _usage(usage: object) -> tuple[int, int, int]:
    """(prompt, cached prompt, completion) tokens; 0 where the server reports none."""
    if not isinstance(usage, dict):
        return 0, 0, 0
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return _count(usage.get("prompt_tokens")), _count(cached), _count(usage.get("completion_tokens"))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
