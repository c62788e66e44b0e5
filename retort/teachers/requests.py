"""What passes between the labelling of a pool and whatever answers: questions in, answers out, in any order."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from retort.problems import Constraint
from retort.teachers.top_logprobs import TopLogprobs


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a teacher reads for one row."""

    shared: tuple[Turn, ...]
    """Instruction and demonstrations: the same object for every row that shares them, so that a server computes
    them once."""
    item: str
    """The last user turn: the row."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One row, asked once."""

    key: bytes
    """Of the row and the try in the ledger, 16 bytes; unique among the questions under way."""
    prompt: Prompt
    constraint: Constraint | None = None
    """What a completion may be; None: anything up to the end of the line."""
    sampling_temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    samples: tuple[int, ...] = (0,)
    """Numbers of the completions wanted, each with a seed of its own."""
    ledger_keys: tuple[bytes, ...] = ()
    """Of each of the `samples`: under which its completion is kept, for answers that come in another run."""
    verbalizers: tuple[str, ...] = ()
    """If given, nothing is written: wanted are the log-probabilities of these texts as the completion."""
    top_logprobs: int = 0
    """If above 0: how many of the likeliest next tokens are wanted at each token that is written."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion."""

    key: bytes
    """The question's."""
    sample: int
    """One of the question's `samples`."""
    text: str
    finish_reason: str | None
    """`stop` (it ended properly), `length` (cut at max_tokens), or what the server says."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that the engine had computed before."""
    completion_tokens: int
    scores: tuple[float, ...] = ()
    """Where verbalizers were asked for: the natural logarithm of each one's probability as the completion, not
    normalised over them; `text` is the most probable one."""
    top: TopLogprobs | None = None
    """Where top_logprobs were asked for."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A question that gets no completion, whatever is done: a prompt that is too long, a row that a server rejects.
    Nothing was paid for it, and asking again in the same run would not help."""

    key: bytes
    reason: str
    """A short code, counted in reports: `too-long`, `http-400`, `bad-response` ..."""
    detail: str
    """One sentence for people."""
    raw: str = ""
    """What the server said, as far as it said anything."""


class CompletionClient(Protocol):
    @property
    def facts(self) -> dict[str, Any]:
        """What an engine says of itself, for reports: `version`, `dtype`, `num_gpus` ...; empty for a server."""
        ...

    def ask(self, questions: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        """Answers as they come, in any order; each question gets an Answer for each of its samples, or one Refusal.

        Takes from `questions` only as much as is needed to keep busy, and stops taking when it is exhausted; what is
        under way then is still answered. Raises TeacherUnavailable where asking cannot go on but may later,
        ChildOutOfMemory where less at once would help, ConfigError where the config is to blame (model not found,
        key refused).
        """
        ...


OpenClient = AbstractContextManager[CompletionClient]
"""Entering starts what is needed (an engine, connections), leaving ends it."""
