"""What vendors answer, as a text and the reason for its end: bodies of responses, and the lines of batch output files.

Known are OpenAI's chat completions (also of vLLM's run-batch, Mistral, Azure and most other servers), plain completions
and responses, Anthropic's message batches (also on Bedrock) and Gemini's batches. Thoughts are no part of a text. What
calls tools is the JSON of `retort.problems.turns`, with the words beside the calls in it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from retort.problems.turns import TOOL_CALLS, ended_by, said

_ID_FIELDS = ("custom_id", "key", "recordId")
"""What names the request in a line: of OpenAI, Mistral and Anthropic; of Gemini; of Bedrock."""
_THOUGHTS = re.compile(r"^.*</think>|<think>.*$", re.DOTALL)
"""Words that end up in JSON; of a text, whoever reads it cuts them off."""
_TEXT_PARTS = ("text", "output_text", None)
"""The types of parts that hold text; Gemini's have no type."""
_FINISH_REASONS = {
    **dict.fromkeys(("end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed"), "stop"),
    **dict.fromkeys(("max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii"), "content_filter"),
    **dict.fromkeys(("language", "image_safety", "guardrail_intervened", "content_filtered"), "content_filter"),
    **dict.fromkeys(("tool_use", "function_call"), TOOL_CALLS),
    "stop": "stop",
}
"""By the vendor's name in lower case."""


class Answer(NamedTuple):
    text: str
    finish_reason: str | None
    """`stop`, `length` (cut at the token limit), `content_filter`, `tool_calls`, or what else the vendor says."""
    prompt_tokens: int
    """Cached ones included; 0 if the vendor does not say."""
    completion_tokens: int
    """Thoughts included; 0 if the vendor does not say."""


class NoAnswer(Exception):
    """A line of a batch output file without a text, with a reason code and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def text_of(content: object) -> str | None:
    """A message's content: a text, or a list of parts, of which those that hold text are joined. None if neither."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    return "".join(_part(part) for part in content)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or part.get("thought"):
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def finish_reason_of(value: object) -> str | None:
    """The reason in OpenAI's words, whatever the vendor's are; unchanged if it is unknown."""
    return _FINISH_REASONS.get(value.lower(), value) if isinstance(value, str) else None


def with_calls(text: str | None, calls: object, reason: object) -> tuple[str, str | None]:
    """(text, finish_reason in OpenAI's words) of a message that may call tools, which is then JSON."""
    if calls and text:
        text = _THOUGHTS.sub("", text)
    message = {"content": text, "tool_calls": calls}
    return said(message) or "", ended_by(message, finish_reason_of(reason))


def request_id_of(line: Mapping[str, Any]) -> str | None:
    """Which request a line of a batch output file answers."""
    names = (line[field] for field in _ID_FIELDS if field in line)
    return next((name for name in names if isinstance(name, str) and name), None)


def answer_of(line: Mapping[str, Any]) -> Answer:
    """The answer in a line of a batch output file. Raises NoAnswer."""
    _check_status(line)
    body = _body(line)
    if body.get("error"):
        raise NoAnswer("error", f"the request failed: {_shown(body['error'])}")
    if "candidates" in body or "promptFeedback" in body:
        return _gemini(body)
    if isinstance(body.get("output"), list):
        return _openai_response(body)
    if "content" in body and "choices" not in body:
        return _anthropic(body)
    if "method" in line and "url" in line and "response" not in line:
        raise NoAnswer("a-request", "a request of a batch, where its answer is needed; give the batch's output file")
    return _chat(body)


def _check_status(line: Mapping[str, Any]) -> None:
    """Raises NoAnswer for a request that failed."""
    response, result = line.get("response"), line.get("result")
    status = response.get("status_code", 200) if isinstance(response, dict) else None
    if status is not None and str(status) != "200":
        raise NoAnswer(f"http-{status}", f"the request was answered with HTTP status {status}")
    if line.get("error"):
        raise NoAnswer("error", f"the request failed: {_shown(line['error'])}")
    if isinstance(result, dict) and result.get("type") != "succeeded":
        told = _shown(result["error"]) if result.get("error") else f"it is {result.get('type')}"
        raise NoAnswer("error", f"the request failed: {told}")
    if response is None and result is None and isinstance(line.get("status"), str) and line["status"]:
        raise NoAnswer("error", f"the request failed: {line['status']:.200}")  # Vertex AI


def _body(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's server sent; empty if there is nothing like it."""
    response, result = line.get("response"), line.get("result")
    for body in (
        response.get("body") if isinstance(response, dict) else None,
        result.get("message") if isinstance(result, dict) else None,
        line.get("modelOutput"),
        response,
    ):
        if isinstance(body, dict):
            return body
    return {}


def _chat(body: Mapping[str, Any]) -> Answer:
    choice = _first(body.get("choices"))
    message = choice.get("message")
    text = text_of(message.get("content")) if isinstance(message, dict) else text_of(choice.get("text"))
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if text is None and not calls and isinstance(message, dict) and message.get("refusal"):
        raise NoAnswer("refused", f"the model refused: {_shown(message['refusal'])}")
    if text is None and not calls:
        raise NoAnswer("no-choices", "the response holds no text")
    prompt, completion = _tokens(body.get("usage"), ("prompt_tokens",), ("completion_tokens",))
    return Answer(*with_calls(text, calls, choice.get("finish_reason")), prompt, completion)


def _openai_response(body: Mapping[str, Any]) -> Answer:
    status, details = body.get("status", "completed"), body.get("incomplete_details")
    if status not in ("completed", "incomplete"):
        raise NoAnswer("error", f"the request failed: the response is {_shown(status)}")
    messages = [item for item in body["output"] if isinstance(item, dict) and item.get("type") == "message"]
    contents = [content if isinstance(content := item.get("content"), list) else [content] for item in messages]
    parts = [part for content in contents for part in content]
    refusals = (part.get("refusal") for part in parts if isinstance(part, dict) and part.get("type") == "refusal")
    refusal = next(refusals, None)
    if refusal is not None:
        raise NoAnswer("refused", f"the model refused: {_shown(refusal)}")
    why = details.get("reason") if status == "incomplete" and isinstance(details, dict) else status
    calls = [item for item in body["output"] if isinstance(item, dict) and item.get("type") == "function_call"]
    prompt, completion = _tokens(body.get("usage"), ("input_tokens",), ("output_tokens",))
    return Answer(*with_calls(text_of(parts), calls, why), prompt, completion)


def _anthropic(body: Mapping[str, Any]) -> Answer:
    text = text_of(body.get("content"))
    if text is None:
        raise NoAnswer("no-choices", "the response holds no text")
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    prompt, completion = _tokens(body.get("usage"), ("input_tokens", *cached), ("output_tokens",))
    calls = [_call(part, "input") for part in _parts(body["content"]) if part.get("type") == "tool_use"]
    return Answer(*with_calls(text, calls, body.get("stop_reason")), prompt, completion)


def _gemini(body: Mapping[str, Any]) -> Answer:
    candidate, feedback = _first(body.get("candidates")), body.get("promptFeedback")
    content = candidate.get("content")
    finish_reason = finish_reason_of(candidate.get("finishReason"))
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        finish_reason = "content_filter"
    text = text_of(content.get("parts")) if isinstance(content, dict) else None
    if text is None and finish_reason is None:
        raise NoAnswer("no-choices", "the response holds no text")
    given = ("candidatesTokenCount", "thoughtsTokenCount")
    prompt, completion = _tokens(body.get("usageMetadata"), ("promptTokenCount",), given)
    parts = _parts(content.get("parts")) if isinstance(content, dict) else []
    calls = [_call(part["functionCall"], "args") for part in parts if isinstance(part.get("functionCall"), dict)]
    return Answer(*with_calls(text, calls, finish_reason), prompt, completion)


def _parts(content: object) -> list[dict[str, Any]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _call(given: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    """A call in OpenAI's words, whose vendor gives its arguments under another name."""
    return {"name": given.get("name"), "arguments": given.get(arguments)}


def _first(choices: object) -> dict[str, Any]:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _tokens(usage: object, prompt: tuple[str, ...], completion: tuple[str, ...]) -> tuple[int, int]:
    """(prompt, completion) tokens, each the sum of its fields."""
    given = usage if isinstance(usage, dict) else {}
    return sum(_count(given.get(name)) for name in prompt), sum(_count(given.get(name)) for name in completion)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _shown(value: object) -> str:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:200]
