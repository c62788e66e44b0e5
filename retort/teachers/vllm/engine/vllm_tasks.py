"""Turns one of Retort's requests into vLLM requests and their outputs into replies. Runs in vLLM's environment only."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind, SamplingParams, StructuredOutputsParams

if TYPE_CHECKING:
    from retort.teachers.vllm.engine import rendering, scoring
    from retort.teachers.vllm.engine.prefixes import Prefix
    from retort.teachers.vllm.engine.toplogprobs import pack, tokenizer_identity
else:
    import rendering
    import scoring
    from prefixes import Prefix
    from toplogprobs import pack, tokenizer_identity

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class VllmRequest:
    token_ids: list[int]
    parameters: dict[str, Any]
    """Arguments of SamplingParams."""


class Task(Protocol):
    """The work for one of Retort's requests."""

    @property
    def vllm_requests(self) -> Mapping[str, VllmRequest]:
        """The vLLM requests, by unique name."""
        ...

    def too_long(self, context_length: int) -> str:
        """A sentence if the task does not fit into the model's context, in tokens; otherwise ""."""
        ...

    def take(self, output: Any) -> list[Message]:
        """Accept the output of a finished vLLM request; returns the replies that are complete with it."""
        ...


class CompletionTask:
    """Generates completions, with one vLLM request per sample."""

    def __init__(self, message: Message, prefix: Prefix, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._message = message
        self._prompt = prefix.prompt(message["item"], message["earlier"])
        self._tokenizer = tokenizer
        parameters = {
            "temperature": message["temperature"],
            "top_p": message["top_p"],
            "max_tokens": message["max_tokens"],
            "output_kind": RequestOutputKind.FINAL_ONLY,
            "logprobs": message["top_logprobs"] or None,
            **_stop_settings(message, tokenizer, options),
        }
        # vLLM decodes token by token, in the thread that takes requests, which costs it most of its time; only to find
        # text that ends a completion does it have to.
        parameters["detokenize"] = self._decoded_by_vllm = bool(parameters.get("stop"))
        self.vllm_requests = {
            f"{message['id']}:{sample}": VllmRequest(
                self._prompt, {**parameters, "seed": options["seed"] + sample if message["temperature"] else None}
            )
            for sample in message["samples"]
        }

    def too_long(self, context_length: int) -> str:
        return _too_long(len(self._prompt), self._message["max_tokens"], context_length)

    def take(self, output: Any) -> list[Message]:
        number, _, sample = output.request_id.partition(":")
        (completion,) = output.outputs
        if completion.finish_reason in ("error", "abort"):
            reason = "bad-constraint" if self._message["constraint"] else "engine-error"
            return [{"id": int(number), "refused": reason, "detail": "vLLM gave it up; its log says why."}]
        if fault := self._fault_of_grammar(completion):
            return [{"id": int(number), "refused": "bad-constraint", "detail": f"vLLM refuses it: {fault}"}]
        return [
            {
                "id": int(number),
                "sample": int(sample),
                "text": self._text(completion),
                "finish_reason": completion.finish_reason,
                "prompt_tokens": len(output.prompt_token_ids),
                "cached_tokens": output.num_cached_tokens or 0,
                "completion_tokens": len(completion.token_ids),
                "scores": [],
                "top": self._top(completion),
                "logprob": completion.cumulative_logprob,
            }
        ]

    def _fault_of_grammar(self, completion: Any) -> str:
        """Why a grammar in Lark did not compile, if that is why the completion is empty; otherwise ""."""
        constraint = self._message["constraint"]
        if len(completion.token_ids) > 1 or not constraint or not is_lark(constraint.get("grammar")):
            return ""
        from vllm.v1.structured_output.backend_guidance import validate_guidance_grammar  # slow, and seldom needed

        try:
            validate_guidance_grammar(SamplingParams(structured_outputs=StructuredOutputsParams(**constraint)))
        except (VLLMValidationError, ValueError) as error:
            return str(error)
        return ""

    def _text(self, completion: Any) -> str:
        if self._decoded_by_vllm:
            return str(completion.text)
        is_stopped = completion.finish_reason == "stop"  # by its last token
        token_ids = completion.token_ids[:-1] if is_stopped else completion.token_ids
        return rendering.completion_text(self._tokenizer, self._prompt, token_ids)

    def _top(self, completion: Any) -> Message | None:
        """The completion's top log-probabilities, if requested. vLLM also lists the generated token, however unlikely
        it is. Its log-probabilities are those before the temperature but after the constraint, under which forbidden
        tokens have -inf."""
        if not (k := self._message["top_logprobs"]):
            return None
        listed = ({token: entry.logprob for token, entry in at.items()} for at in completion.logprobs)
        parts = [b64encode(part).decode() for part in pack(completion.token_ids, listed, k)]
        return {"k": k, "tokenizer": tokenizer_identity(self._tokenizer), "packed": parts}


def is_lark(grammar: str | None) -> bool:
    """Whether it is one of those that Retort writes for llguidance."""
    return (grammar or "").startswith("%llguidance")


def _stop_settings(message: Message, tokenizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What ends a completion besides its length. In chats and under constraints, the model's end token does."""
    if options["ignore_end"]:
        return {"ignore_eos": True}
    if message["constraint"]:
        return {"structured_outputs": StructuredOutputsParams(**message["constraint"])}
    return {} if rendering.has_chat_template(tokenizer) else {"stop": ["\n"]}


class ScoringTask:
    """Scores verbalizers, with a vLLM request for a single token per node of their trie."""

    def __init__(self, message: Message, prefix: Prefix, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._message = message
        self._prompt = prefix.prompt(message["item"], message["earlier"])
        self._paths = _paths(tokenizer, prefix.after, tuple(message["verbalizers"]))
        self._next_token: dict[scoring.Path, dict[int, float]] = {}
        self._nodes: dict[str, scoring.Path] = {}
        self._cached_tokens = 0
        self.vllm_requests = dict(self._build_requests())
        if not self.vllm_requests:
            raise ValueError("there is no text to score")

    def _build_requests(self) -> Iterator[tuple[str, VllmRequest]]:
        for node in scoring.nodes(self._paths):
            children = scoring.children(self._paths, node)
            for start in range(0, len(children), MAX_LOGPROB_TOKEN_IDS):
                name = f"{self._message['id']}:{len(self._nodes)}"
                self._nodes[name] = node
                wanted = children[start : start + MAX_LOGPROB_TOKEN_IDS]
                # The engine returns these tokens' log-probabilities under the model's own distribution, and does not
                # have to sort the vocabulary.
                parameters = {"logprob_token_ids": wanted, "temperature": 0.0, "max_tokens": 1, "detokenize": False}
                final = {"output_kind": RequestOutputKind.FINAL_ONLY}
                yield name, VllmRequest([*self._prompt, *node], {**parameters, **final})

    def too_long(self, context_length: int) -> str:
        return _too_long(len(self._prompt), max(map(len, self._paths)), context_length)

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
        best = self._message["verbalizers"][scores.index(max(scores))]
        reply = {"id": self._message["id"], "text": best, "finish_reason": "stop", "scores": scores}
        usage = {"prompt_tokens": len(self._prompt), "cached_tokens": self._cached_tokens, "completion_tokens": 0}
        return [{**reply, **usage, "sample": sample} for sample in self._message["samples"]]


@lru_cache(maxsize=64)
def _paths(tokenizer: Any, after: str, verbalizers: tuple[str, ...]) -> list[scoring.Path]:
    token_ids = [scoring.continuation(tokenizer, after, text) for text in verbalizers]
    return scoring.ended(token_ids, scoring.end_token(tokenizer, chat=rendering.has_chat_template(tokenizer)))


def _too_long(prompt: int, completion: int, context_length: int) -> str:
    if prompt + completion <= context_length:
        return ""
    return (
        f"The prompt has {prompt} tokens and its completion may have {completion}; "
        f"the model's context is {context_length}."
    )
