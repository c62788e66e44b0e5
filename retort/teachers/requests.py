"""The interface between labeling and a completion client: requests in, completions out, in any order."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from retort.problems import Constraint
from retort.teachers.top_logprobs import TopLogprobs

Role = Literal["system", "user", "assistant"]
INTERRUPTED = ("error", "abort", "insufficient_system_resource")
"""Values of `finish_reason` for a completion that the server broke off (OpenRouter and Mistral, vLLM, DeepSeek)."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt for one row."""

    shared: tuple[Turn, ...]
    """Instruction and demonstrations; the same object for every row that shares them, so that they are computed only
    once."""
    item: str
    """The last user turn: the row."""
    earlier: tuple[Turn, ...] = ()
    """The row's own turns before it, which a conversation has."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All of it."""
        return (*self.shared, *self.earlier, Turn("user", self.item))


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request for the completions of one row in one attempt."""

    key: bytes
    """A ledger key of the row and attempt, 16 bytes; unique among the requests in flight."""
    prompt: Prompt
    constraint: Constraint | None = None
    """What a completion may be; None allows anything up to the end of the line."""
    sampling_temperature: float | None = 0.0
    """None: the server's own."""
    top_p: float = 1.0
    max_tokens: int = 256
    samples: tuple[int, ...] = (0,)
    """Numbers of the requested samples; each has its own seed."""
    ledger_keys: tuple[bytes, ...] = ()
    """The ledger key of each of the `samples`, for completions that arrive in another run."""
    verbalizers: tuple[str, ...] = ()
    """If given, no text is generated; the log-probability of each of these texts as the completion is requested."""
    top_logprobs: int = 0
    """If above 0, how many of the likeliest next tokens to return for each generated token."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion."""

    key: bytes
    """The request's key."""
    sample: int
    """One of the request's `samples`."""
    text: str
    finish_reason: str | None
    """`stop` (ended properly), `length` (truncated at max_tokens), or whatever the server reports."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the engine had already computed."""
    completion_tokens: int
    scores: tuple[float, ...] = ()
    """For requests with verbalizers: the natural logarithm of each one's probability as the completion, not normalized
    over the verbalizers; `text` is then the most probable one."""
    top: TopLogprobs | None = None
    """For requests with top_logprobs."""
    logprob: float | None = None
    """The natural logarithm of the completion's probability at temperature 1, its end included; under a constraint, of
    that among the completions that may be. Known for requests with top_logprobs."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that cannot be completed: the prompt is too long, or the server rejects the row. It cost nothing, and
    repeating it in the same run would not help."""

    key: bytes
    reason: str
    """A short code, counted in reports: `too-long`, `http-400`, `bad-response` ..."""
    detail: str
    """One human-readable sentence."""
    raw: str = ""
    """The server's response, if there was one."""


class CompletionClient(Protocol):
    """Completes requests, through an engine or a remote server."""

    @property
    def facts(self) -> dict[str, Any]:
        """What an engine reports about itself: `version`, `dtype`, `num_gpus` ...; of a server, how often and for how
        long it was waited for."""
        ...

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        """Yields results as they arrive, in any order: each request gets a Completion per sample, or one Rejection.

        Takes from `requests` only as many as are needed to keep busy. Once it is exhausted, requests in flight are
        still completed. Raises TeacherUnavailable if the teacher cannot continue now but may later, ChildOutOfMemory if
        smaller batches would help, and ConfigError if the config is to blame (model not found, key rejected).
        """
        ...


OpenClient = AbstractContextManager[CompletionClient]
"""Entering starts what the client needs (an engine, connections); leaving shuts it down."""
