"""Turns rows into completion requests and computes the ledger keys of their completions."""

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
from retort.teachers.constraints import expressible
from retort.teachers.demonstrations import choose_demonstrations
from retort.teachers.ledger import ledger_key
from retort.teachers.prompts import item_text, prompt_for, shared_turns
from retort.teachers.rationales import constraint_of
from retort.teachers.requests import CompletionRequest, Turn


@dataclass(frozen=True, slots=True)
class Pending:
    """A row that has no label yet."""

    position: int
    """Index in the file of rows, from 0."""
    example_id: str
    text: str
    num_tries: int = 0
    """Rounds that the row has been through in this run, whether the attempt was in the ledger or requested."""
    was_requested: bool = False
    """A completion was requested in this run."""
    is_rejected: bool = False
    """The request was rejected, and would be again."""
    has_label: bool = False
    """There is a label, which a later attempt may replace."""


@dataclass(frozen=True)
class RequestBuilder:
    """Builds one teacher's requests for the rows of a problem."""

    problem: Problem
    teacher: LlmTeacherConfig
    everything: tuple[Turn, ...]
    """The turns before a row of the pool."""
    excluding: Mapping[tuple[str, str], tuple[Turn, ...]]
    """The turns before a row that is itself a demonstration, by its id and text: its own label must not be shown. An id
    alone does not tell, since a row of another file may have the same."""
    attempts: int
    """How many attempts a run makes at a row."""

    def shared(self, example_id: str, text: str) -> tuple[Turn, ...]:
        """The turns before a row; the same object for all rows of the pool."""
        return self.excluding.get((example_id, text), self.everything)

    @property
    def verbalizers(self) -> tuple[str, ...]:
        """The texts scored for soft labels, in the order of the problem's classes; empty for hard labels."""
        if self.teacher.labels == "hard":
            return ()
        return tuple(self.teacher.verbalizers.get(name, name) for name in self.problem.classes)

    def keys(self, rows: Iterable[Pending], attempt: int) -> Iterator[Row]:
        """Position and ledger key of each completion that the rows need in an attempt. Row i and sample s, both from 0,
        have position `i * samples + s`. What rows share is hashed once."""
        samples, number = self.teacher.sampling.samples, 0
        schema = self.problem.schema + self._regex if self.is_constrained(attempt) else ""
        digests: dict[int, bytes] = {}
        for pending in rows:
            shared = self.shared(pending.example_id, pending.text)
            if id(shared) not in digests:
                digests[id(shared)] = self._shared_digest(shared, attempt)
            item = item_text(self.teacher.prompt, pending.text)
            for sample in range(samples):
                key = ledger_key(digests[id(shared)], item, schema, self._try(attempt), sample)
                yield {"position": number, "key": key}
                number += 1

    def request(self, pending: Pending, keys: Mapping[int, bytes], attempt: int) -> CompletionRequest:
        """The request for one row; `keys` are the ledger keys of the requested samples, by the sample's number."""
        return CompletionRequest(
            key=next(iter(keys.values())),
            prompt=prompt_for(
                self.problem, self.teacher.prompt, self.shared(pending.example_id, pending.text), pending.text
            ),
            constraint=constraint_of(self.problem, self.teacher, pending.text)
            if self.is_constrained(attempt)
            else None,
            sampling_temperature=self.temperature(attempt),
            top_p=self.teacher.sampling.top_p,
            max_tokens=self.teacher.max_tokens,
            samples=tuple(keys),
            ledger_keys=tuple(keys.values()),
            verbalizers=self.verbalizers,
            top_logprobs=self.teacher.sampling.top_logprobs,
        )

    def temperature(self, attempt: int) -> float | None:
        """None: it is left to the server, at every attempt."""
        if self.teacher.sampling.sampling_temperature is None:
            return None
        again = self.teacher.ask_again.sampling_temperature
        return again if self._try(attempt) else self.teacher.sampling.sampling_temperature

    def is_constrained(self, attempt: int) -> bool:
        return self.teacher.labels == "hard" and (self.teacher.constrained is True or attempt > 0)

    def _try(self, attempt: int) -> int:
        """The attempt's number among those of its kind. Constrained when needed, a row has the unconstrained attempt,
        and then those of a row that is always constrained, with the same keys."""
        return max(0, attempt - 1) if self.teacher.constrained == "when-needed" else attempt

    def may_retry(self, pending: Pending) -> bool:
        """Whether a row that got no label, or none that is whole, may be attempted again in this run.

        A pass over a row has `attempts`. A run finishes a pass that an earlier one began, and begins another only for a
        row that was set aside then, whose attempts are all in the ledger; one with a label is never set aside. At
        temperature 0 an identical request would get the same completion, so it is not repeated.
        """
        is_first_constrained = pending.num_tries == 1 and self.teacher.constrained is not True
        differs = self.temperature(pending.num_tries) != 0 or is_first_constrained
        mid_pass = pending.num_tries % self.attempts != 0
        was_set_aside = not (pending.was_requested or (pending.has_label and pending.num_tries > 1))
        useful = differs and self.teacher.labels == "hard" and not pending.is_rejected
        return useful and (mid_pass or was_set_aside)

    def may_improve(self, confidence: float, attempt: int) -> bool:
        """Whether a label with this confidence is worth another attempt: of an unconstrained completion that was to be
        constrained when needed, and did not account for the whole text."""
        when_needed = self.teacher.constrained == "when-needed" and not self.is_constrained(attempt)
        return when_needed and self.teacher.sampling.samples == 1 and confidence < 1

    @property
    def _regex(self) -> str:
        """The regular expression that completions are held to, which the schema does not tell; "" if there is none."""
        if self.problem.classes:
            return ""
        constraint = expressible(self.problem.constraint(""), self.teacher)
        return constraint.regex or "" if constraint else ""

    def _shared_digest(self, shared: Sequence[Turn], attempt: int) -> bytes:
        """Digest of everything a completion depends on besides the row and the teacher's identity, which determines
        the ledger's folder. Excludes sampling.max_tokens: a completion that finished is as good under a larger limit.
        """
        temperature = self.temperature(attempt)
        sampled = (
            {"top_p": self.teacher.sampling.top_p, "seed": sampling_seed(self.teacher)} if temperature != 0 else {}
        )
        # Top log-probabilities cannot be added to a completion later.
        listed = {"top_logprobs": k} if (k := self.teacher.sampling.top_logprobs) else {}
        parts = [
            [asdict(turn) for turn in shared],
            {"temperature": temperature, "verbalizers": self.verbalizers, **sampled, **listed},
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def request_builder(problem: Problem, teacher: LlmTeacherConfig, labeled: Sequence[Example]) -> RequestBuilder:
    """A builder with the demonstrations that the config selects. Raises ConfigError for verbalizers that do not fit."""
    check_verbalizers(problem, teacher)
    prompt, rationales = teacher.prompt, teacher.rationales
    if rationales and prompt.demonstrations != 0:
        labeled = _with_rationales(labeled)
    chosen = choose_demonstrations(labeled, prompt.demonstrations, prompt.choose)
    return RequestBuilder(
        problem=problem,
        teacher=teacher,
        everything=shared_turns(problem, prompt, chosen, rationales=rationales),
        excluding={
            (shown.example_id, shown.text): shared_turns(
                problem, prompt, [other for other in chosen if other is not shown], rationales=rationales
            )
            for shown in chosen
        },
        attempts=1 + teacher.ask_again.times + (teacher.constrained == "when-needed"),
    )


def _with_rationales(labeled: Sequence[Example]) -> list[Example]:
    """Raises ConfigError if there are none: a teacher that sees labels alone would write labels alone."""
    given = [example for example in labeled if example.rationale is not None]
    if not given:
        raise ConfigError(
            "teacher.rationales: no labeled row has a rationale to show, see data.columns.rationale; write some, or "
            "set teacher.prompt.demonstrations: 0"
        )
    return given


def check_verbalizers(problem: Problem, teacher: LlmTeacherConfig) -> None:
    """Raises ConfigError unless each class has a verbalizer of its own."""
    given = teacher.verbalizers
    if not given:
        return
    if missing := [name for name in problem.classes if name not in given]:
        raise ConfigError(f"teacher.verbalizers: no text for {listed(missing)}; give one for every class, or none")
    if unknown := [name for name in given if name not in problem.classes]:
        raise ConfigError(f"teacher.verbalizers: '{unknown[0]}' is not a class; allowed: {listed(problem.classes)}")
    if len(set(given.values())) < len(given) or "" in given.values():
        raise ConfigError("teacher.verbalizers: each class needs a text of its own that is not empty")


def sampling_seed(teacher: LlmTeacherConfig) -> int:
    """The configured sampling seed; 0 for an endpoint, whose config has none."""
    return int(getattr(teacher, "seed", 0))
