"""One question as vLLM's requests, and its answers from what they give. Runs in vLLM's environment only."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind, StructuredOutputsParams

if TYPE_CHECKING:
    from retort.teachers.vllm.engine import rendering, scoring
    from retort.teachers.vllm.engine.prefixes import Prefix
    from retort.teachers.vllm.engine.toplogprobs import packed, tokenizer_identity
else:
    import rendering
    import scoring
    from prefixes import Prefix
    from toplogprobs import packed, tokenizer_identity

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    token_ids: list[int]
    parameters: dict[str, Any]
    """Of SamplingParams."""


class Asked(Protocol):
    @property
    def requests(self) -> Mapping[str, Request]:
        """By a name that no other request has."""
        ...

    def too_long(self, most: int) -> str:
        """A sentence where the model's context of `most` tokens does not hold it, else ""."""
        ...

    def take(self, output: Any) -> list[Message]:
        """A finished request's output; the answers that are ready with it."""
        ...


class Written:
    """Completions, one request for each sample."""

    def __init__(self, question: Message, prefix: Prefix, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._question = question
        self._prompt = prefix.prompt(question["item"])
        self._tokenizer = tokenizer
        parameters = {
            "temperature": question["temperature"],
            "top_p": question["top_p"],
            "max_tokens": question["max_tokens"],
            "output_kind": RequestOutputKind.FINAL_ONLY,
            "logprobs": question["top_logprobs"] or None,
            **_end(question, tokenizer, options),
        }
        self.requests = {
            f"{question['id']}:{sample}": Request(
                self._prompt, {**parameters, "seed": options["seed"] + sample if question["temperature"] else None}
            )
            for sample in question["samples"]
        }

    def too_long(self, most: int) -> str:
        return _too_long(len(self._prompt), self._question["max_tokens"], most)

    def take(self, output: Any) -> list[Message]:
        number, _, sample = output.request_id.partition(":")
        (completion,) = output.outputs
        if completion.finish_reason in ("error", "abort"):
            reason = "bad-constraint" if self._question["constraint"] else "engine-error"
            return [{"id": int(number), "refused": reason, "detail": "vLLM gave it up; its log says why."}]
        return [
            {
                "id": int(number),
                "sample": int(sample),
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": len(output.prompt_token_ids),
                "cached_tokens": output.num_cached_tokens or 0,
                "completion_tokens": len(completion.token_ids),
                "scores": [],
                "top": self._top(completion),
            }
        ]

    def _top(self, completion: Any) -> Message | None:
        """vLLM lists the token that was written as well, however unlikely it is. Its log-probabilities are those before
        the temperature, but after the constraint, which leaves -inf to what it forbids."""
        if not (k := self._question["top_logprobs"]):
            return None
        listed = ({token: entry.logprob for token, entry in at.items()} for at in completion.logprobs)
        parts = [b64encode(part).decode() for part in packed(completion.token_ids, listed, k)]
        return {"k": k, "tokenizer": tokenizer_identity(self._tokenizer), "packed": parts}


def _end(question: Message, tokenizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What ends a completion beside its length. A chat's turn and a constraint end by the model's end token."""
    if options["ignore_end"]:
        return {"ignore_eos": True}
    if question["constraint"]:
        return {"structured_outputs": StructuredOutputsParams(**question["constraint"])}
    return {} if rendering.has_chat_template(tokenizer) else {"stop": ["\n"]}


class Scored:
    """Log-probabilities of verbalizers, one request of one token for each node of their trie."""

    def __init__(self, question: Message, prefix: Prefix, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._question = question
        self._prompt = prefix.prompt(question["item"])
        self._paths = _paths(tokenizer, prefix.after, tuple(question["verbalizers"]))
        self._next_token: dict[scoring.Path, dict[int, float]] = {}
        self._nodes: dict[str, scoring.Path] = {}
        self._cached_tokens = 0
        self.requests = dict(self._each_request())
        if not self.requests:
            raise ValueError("there is no text to score")

    def _each_request(self) -> Iterator[tuple[str, Request]]:
        for node in scoring.nodes(self._paths):
            children = scoring.children(self._paths, node)
            for start in range(0, len(children), MAX_LOGPROB_TOKEN_IDS):
                name = f"{self._question['id']}:{len(self._nodes)}"
                self._nodes[name] = node
                wanted = children[start : start + MAX_LOGPROB_TOKEN_IDS]
                # The engine returns these of the model's own distribution, and sorts no vocabulary for it.
                parameters = {"logprob_token_ids": wanted, "temperature": 0.0, "max_tokens": 1, "detokenize": False}
                final = {"output_kind": RequestOutputKind.FINAL_ONLY}
                yield name, Request([*self._prompt, *node], {**parameters, **final})

    def too_long(self, most: int) -> str:
        return _too_long(len(self._prompt), max(map(len, self._paths)), most)

    def take(self, output: Any) -> list[Message]:
        node = self._nodes.pop(output.request_id)
        (logprobs,) = output.outputs[0].logprobs
        found = {token: entry.logprob for token, entry in logprobs.items()}
        self._next_token.setdefault(node, {}).update(found)
        if not node:
            self._cached_tokens = output.num_cached_tokens or 0
        if self._nodes:
            return []
        scores = scoring.log_probabilities(self._paths, self._next_token)
        best = self._question["verbalizers"][scores.index(max(scores))]
        answer = {"id": self._question["id"], "text": best, "finish_reason": "stop", "scores": scores}
        usage = {"prompt_tokens": len(self._prompt), "cached_tokens": self._cached_tokens, "completion_tokens": 0}
        return [{**answer, **usage, "sample": sample} for sample in self._question["samples"]]


@lru_cache(maxsize=64)
def _paths(tokenizer: Any, after: str, verbalizers: tuple[str, ...]) -> list[scoring.Path]:
    token_ids = [scoring.continuation(tokenizer, after, text) for text in verbalizers]
    return scoring.ended(token_ids, scoring.end_token(tokenizer, chat=rendering.has_chat_template(tokenizer)))


def _too_long(prompt: int, completion: int, most: int) -> str:
    if prompt + completion <= most:
        return ""
    return f"The prompt has {prompt} tokens and its completion may have {completion}; the model's context is {most}."
