"""Which questions rows make, and under which keys the ledger holds their answers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from retort.config.teachers import LlmTeacherConfig
from retort.errors import ConfigError
from retort.io.parquet import Row
from retort.problems import Problem
from retort.problems.base import listed
from retort.records.base import Example
from retort.teachers.demonstrations import choose_demonstrations
from retort.teachers.ledger import ledger_key
from retort.teachers.prompts import item_text, prompt_for, shared_turns
from retort.teachers.requests import CompletionRequest, Turn


@dataclass(frozen=True, slots=True)
class Pending:
    """A row on its way to a label."""

    position: int
    """In the file of rows, from 0."""
    example_id: str
    text: str
    num_tries: int = 0
    """Rounds that it has been through in this run, whether its try was known or asked for."""
    was_asked: bool = False
    """In this run."""
    is_refused: bool = False
    """It would be refused again."""


@dataclass(frozen=True)
class RequestBuilder:
    """How one teacher is asked about a problem's rows."""

    problem: Problem
    teacher: LlmTeacherConfig
    everything: tuple[Turn, ...]
    """The turns before a row of the pool."""
    without: Mapping[str, tuple[Turn, ...]]
    """The turns before a demonstration, by its id: it must not see itself."""

    def shared(self, example_id: str) -> tuple[Turn, ...]:
        """The turns before a row; the same object for all rows of the pool."""
        return self.without.get(example_id, self.everything)

    @property
    def verbalizers(self) -> tuple[str, ...]:
        """What is scored for soft labels, in the order of the problem's classes."""
        if self.teacher.labels == "hard":
            return ()
        return tuple(self.teacher.verbalizers.get(name, name) for name in self.problem.classes)

    def keys(self, rows: Iterable[Pending], attempt: int) -> Iterator[Row]:
        """position and key of each completion that the rows need in a try: of row i and sample s, both from 0, number
        `i * samples + s`. What rows share is digested once."""
        samples, number = self.teacher.sampling.samples, 0
        held_to = self.problem.schema if self.is_constrained(attempt) else ""
        digests: dict[int, bytes] = {}
        for pending in rows:
            shared = self.shared(pending.example_id)
            if id(shared) not in digests:
                digests[id(shared)] = self._shared_digest(shared, attempt)
            item = item_text(self.teacher.prompt, pending.text)
            for sample in range(samples):
                yield {"position": number, "key": ledger_key(digests[id(shared)], item, held_to, attempt, sample)}
                number += 1

    def question(self, pending: Pending, keys: Mapping[int, bytes], attempt: int) -> CompletionRequest:
        """`keys`: of the samples that are wanted."""
        return CompletionRequest(
            key=next(iter(keys.values())),
            prompt=prompt_for(self.teacher.prompt, self.shared(pending.example_id), pending.text),
            constraint=self.problem.constraint(pending.text) if self.is_constrained(attempt) else None,
            sampling_temperature=self.temperature(attempt),
            top_p=self.teacher.sampling.top_p,
            max_tokens=self.teacher.sampling.max_tokens,
            samples=tuple(keys),
            ledger_keys=tuple(keys.values()),
            verbalizers=self.verbalizers,
            top_logprobs=self.teacher.sampling.top_logprobs,
        )

    def temperature(self, attempt: int) -> float:
        again = self.teacher.ask_again.sampling_temperature
        return again if attempt else self.teacher.sampling.sampling_temperature

    def is_constrained(self, attempt: int) -> bool:
        return self.teacher.labels == "hard" and (self.teacher.constrained or attempt > 0)

    def may_ask_again(self, pending: Pending) -> bool:
        """A pass over a row has `1 + ask_again.times` tries. A run finishes the pass that an earlier one began, and
        begins another only for a row that was set aside then: all its tries are known. At temperature 0 the same
        question would get the same answer."""
        differs = self.temperature(1) > 0 or not self.teacher.constrained
        mid_pass = pending.num_tries % (1 + self.teacher.ask_again.times) != 0
        useful = differs and self.teacher.labels == "hard" and not pending.is_refused
        return useful and (mid_pass or not pending.was_asked)

    def _shared_digest(self, shared: Sequence[Turn], attempt: int) -> bytes:
        """All that a completion depends on beside the row and who the teacher is, which is the ledger's folder. Not
        sampling.max_tokens: a completion that ended properly is as good under a larger limit."""
        temperature = self.temperature(attempt)
        sampled = {"top_p": self.teacher.sampling.top_p, "seed": sampling_seed(self.teacher)} if temperature else {}
        # A completion without them cannot be given them later.
        listed = {"top_logprobs": k} if (k := self.teacher.sampling.top_logprobs) else {}
        parts = [
            [asdict(turn) for turn in shared],
            {"temperature": temperature, "verbalizers": self.verbalizers, **sampled, **listed},
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def request_builder(problem: Problem, teacher: LlmTeacherConfig, labelled: Sequence[Example]) -> RequestBuilder:
    """With the demonstrations that the config asks for. Raises ConfigError for verbalizers that do not fit."""
    check_verbalizers(problem, teacher)
    prompt = teacher.prompt
    chosen = choose_demonstrations(labelled, prompt.demonstrations, prompt.choose)
    return RequestBuilder(
        problem=problem,
        teacher=teacher,
        everything=shared_turns(problem, prompt, chosen),
        without={
            shown.example_id: shared_turns(problem, prompt, [other for other in chosen if other is not shown])
            for shown in chosen
        },
    )


def check_verbalizers(problem: Problem, teacher: LlmTeacherConfig) -> None:
    """Raises ConfigError unless each class has a text of its own."""
    given = teacher.verbalizers
    if not given:
        return
    if lacking := [name for name in problem.classes if name not in given]:
        raise ConfigError(f"teacher.verbalizers: no text for {listed(lacking)}; give one for every class, or none")
    if unknown := [name for name in given if name not in problem.classes]:
        raise ConfigError(f"teacher.verbalizers: '{unknown[0]}' is not a class; allowed: {listed(problem.classes)}")
    if len(set(given.values())) < len(given) or "" in given.values():
        raise ConfigError("teacher.verbalizers: each class needs a text of its own that is not empty")


def sampling_seed(teacher: LlmTeacherConfig) -> int:
    """Of our own engines; an endpoint is given none that is ours to choose."""
    return int(getattr(teacher, "seed", 0))
