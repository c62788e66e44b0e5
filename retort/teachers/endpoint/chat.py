"""The chat completions of OpenAI-compatible servers: a question as a request's body, a response as answers.

No `stop` is sent, though a label is one line: a chat model ends its turn itself, many begin it with an empty line,
which a stop at the line's end would turn into an empty completion, and some vendors refuse the parameter. What follows
the label is the parser's business.
"""

import json
from typing import Any, Literal
from zlib import crc32

from retort.problems import Constraint
from retort.teachers.endpoint.firsttoken import first_token_scores
from retort.teachers.requests import Completion, CompletionRequest, Turn

ConstraintStyle = Literal["none", "vllm", "json-schema"]
TOP_LOGPROBS = 20
"""The most that OpenAI and vLLM list."""


class Nonsense(Exception):
    """A response of status 200 that holds no chat completion; `str(error)` says why."""


class NoLogprobs(Exception):
    """A chat completion without the log-probabilities that were asked for."""


class Bodies:
    """Writes the bodies of one model's requests."""

    def __init__(self, model: str, style: ConstraintStyle) -> None:
        self._start = f'{{"model": {json.dumps(model)}, "messages": ['.encode()
        self._style = style
        self._shared: tuple[Turn, ...] | None = None
        self._opening, self._shared_characters = b"", 0

    def body(self, question: CompletionRequest, samples: tuple[int, ...]) -> bytes:
        """JSON that asks for these of the question's samples. Up to the row it is the same bytes for all rows that
        share their turns, which are serialised once for as long as the same object comes."""
        if question.prompt.shared is not self._shared:
            self._share(question.prompt.shared)
        settings = json.dumps(self._settings(question, samples))
        item = json.dumps(question.prompt.item)
        return self._opening + f'{{"role": "user", "content": {item}}}], {settings[1:]}'.encode()

    def num_tokens(self, question: CompletionRequest) -> int:
        """Of the prompt, estimated: a token for four characters."""
        if question.prompt.shared is not self._shared:
            self._share(question.prompt.shared)
        return (self._shared_characters + len(question.prompt.item)) // 4 + 1

    def _share(self, shared: tuple[Turn, ...]) -> None:
        turns = [json.dumps({"role": turn.role, "content": turn.content}) + ", " for turn in shared]
        self._shared, self._opening = shared, self._start + "".join(turns).encode()
        self._shared_characters = sum(len(turn.content) for turn in shared)

    def _settings(self, question: CompletionRequest, samples: tuple[int, ...]) -> dict[str, Any]:
        """Everything but model and messages; what equals the protocol's default is left out."""
        if question.verbalizers:
            # Temperature 1 and no constraint: some servers apply them before they take the log-probabilities.
            return {"temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        settings: dict[str, Any] = {"temperature": question.sampling_temperature, "max_tokens": question.max_tokens}
        if question.top_p < 1:
            settings["top_p"] = question.top_p
        if len(samples) > 1:
            settings["n"] = len(samples)
        if question.sampling_temperature > 0:
            settings["seed"] = seed(question.key, samples[0])
        return settings | constrained(question.constraint, self._style)


def seed(key: bytes, sample: int) -> int:
    """Differs by row, try and sample, and is the same in every run; in [0, 2**31)."""
    return (crc32(key) + sample) % 2**31


def constrained(constraint: Constraint | None, style: ConstraintStyle) -> dict[str, Any]:
    """The fields that hold the decoder to legal labels. No JSON schema says what a grammar says: not sent then."""
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


def unwrapped(text: str) -> str:
    """The label in `{"label": ...}`; any other text, which was cut or not held to the schema, as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    label = value.get("label") if isinstance(value, dict) and len(value) == 1 else None
    return label if isinstance(label, str) else text


def answers_in(
    raw: bytes, question: CompletionRequest, samples: tuple[int, ...], style: ConstraintStyle
) -> list[Completion]:
    """The answers in a response's body, for the first of `samples`: fewer than asked for where a server does not
    know `n`, at least one.

    Usage is of the whole response, so the first sample carries the prompt; the tokens written are shared out evenly.
    Raises Nonsense, NoLogprobs.
    """
    response = _object(raw)
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Nonsense("it holds no choices")
    read = [_choice(choice) for choice in choices[: len(samples)]]
    prompt_tokens, cached_tokens, completion_tokens = _usage(response.get("usage"))
    if question.verbalizers:
        scores = first_token_scores(question.verbalizers, _alternatives(choices[0]))
        best = question.verbalizers[max(range(len(scores)), key=scores.__getitem__)]
        tokens = (prompt_tokens, cached_tokens, completion_tokens)
        return [Completion(question.key, samples[0], best, "stop", *tokens, scores)]
    unwrap = style == "json-schema" and question.constraint is not None and question.constraint.choice is not None
    each, rest = divmod(completion_tokens, len(read))
    return [
        Completion(
            question.key,
            sample,
            unwrapped(text) if unwrap else text,
            finish_reason,
            *((prompt_tokens, cached_tokens, each + rest) if sample == samples[0] else (0, 0, each)),
        )
        for sample, (text, finish_reason) in zip(samples, read, strict=False)
    ]


def _object(raw: bytes) -> dict[str, Any]:
    try:
        response = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Nonsense("it is not JSON") from error
    if not isinstance(response, dict):
        raise Nonsense("it is no JSON object")
    return response


def _choice(choice: object) -> tuple[str, str | None]:
    """(text, finish_reason). No text at all is a completion too: the model refused, or thought up to its limit."""
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    if not isinstance(choice, dict) or not isinstance(content, str | None):
        raise Nonsense("a choice holds no message with a text")
    finish_reason = choice.get("finish_reason")
    return content or "", finish_reason if isinstance(finish_reason, str) else None


def _alternatives(choice: Any) -> list[tuple[str, float]]:
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        alternatives = [(str(one["token"]), float(one["logprob"])) for one in listed]
    except (LookupError, TypeError, ValueError):
        alternatives = []
    if not alternatives:
        raise NoLogprobs("it holds no log-probabilities")
    return alternatives


def _usage(usage: object) -> tuple[int, int, int]:
    """(prompt, cached of the prompt, completion) tokens; 0 where the server does not say."""
    if not isinstance(usage, dict):
        return 0, 0, 0
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return _count(usage.get("prompt_tokens")), _count(cached), _count(usage.get("completion_tokens"))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
