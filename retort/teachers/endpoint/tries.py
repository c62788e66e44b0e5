"""One question through all its tries at an endpoint: what is asked again, what is given up, and what ends the run."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Literal

from retort.config import EndpointConfig
from retort.errors import ConfigError, TeacherUnavailable
from retort.teachers.endpoint.chat import Bodies, NoLogprobs, Nonsense, answers_in
from retort.teachers.endpoint.connection import Reply, Setback
from retort.teachers.endpoint.pacing import Gate, backoff
from retort.teachers.requests import Completion, CompletionRequest, Rejection

Outcome = Completion | Rejection

FIRST_ANSWERS = 20
"""If the server refuses so many rows before it answers one, it is not the rows."""
FREE_WAITS = 10
"""How often in a row one question may be told to wait, while no other is answered, before it counts as a try."""
LONGEST_PAUSE_SECONDS = 600.0
"""A server that asks for more is not there for this run."""
SHOWN_CHARACTERS, KEPT_BYTES = 300, 10_000
"""Of what a server says: in a sentence, and as raw text."""


class Tries:
    """The tries of all questions at one endpoint, which know of each other."""

    def __init__(
        self, config: EndpointConfig, post: Callable[[bytes], Awaitable[Reply | Setback]], backoff_seconds: float
    ) -> None:
        self._config, self._post, self._backoff_seconds = config, post, backoff_seconds
        self._bodies = Bodies(config.model, config.constraint_style)
        self._gate = Gate(config.requests_per_minute, config.tokens_per_minute)
        self._num_answered = self._num_refused = self._failures_in_row = 0
        self._early_refusals: set[int] = set()
        """Their status, while nothing was answered."""
        self.sending: set[asyncio.Task[object] | None] = set()
        """Tasks whose request is under way: one that may have been paid for."""
        self.stopped = False
        """No question gets a further try."""

    async def settle(self, question: CompletionRequest, outcomes: list[Outcome]) -> None:
        """Adds an Answer for each sample, or (after those that came) one Refusal, and less only once stopped.

        Raises ConfigError, TeacherUnavailable.
        """
        missing, failures, waits, progress = question.samples, 0, 0, self._progress
        while missing and not self.stopped:
            result = await self._try(question, missing)
            if isinstance(result, Rejection):
                outcomes.append(result)
                return
            if isinstance(result, list):
                outcomes += result
                missing, failures, waits = missing[len(result) :], 0, 0
                continue
            if self.stopped:
                return
            if result.kind == "busy":
                waits = waits + 1 if progress == self._progress else 1
                progress = self._progress
                self._gate.pause(result.wait_seconds or backoff(self._backoff_seconds, waits))
                if waits <= FREE_WAITS:
                    continue
            failures += 1
            if failures > self._config.retries:
                outcomes.append(self._given_up(question, result))
                return
            await asyncio.sleep(max(backoff(self._backoff_seconds, failures), result.wait_seconds or 0))

    @property
    def _progress(self) -> int:
        """Grows whenever the server deals with a row."""
        return self._num_answered + self._num_refused

    async def _try(
        self, question: CompletionRequest, samples: tuple[int, ...]
    ) -> list[Completion] | Rejection | Setback:
        tokens = self._bodies.num_tokens(question)
        await self._gate.enter(tokens)
        task = asyncio.current_task()
        self.sending.add(task)
        try:
            reply = await self._post(self._bodies.body(question, samples))
        finally:
            self.sending.discard(task)
        result = self._judged(question, samples, reply)
        if isinstance(result, list):
            self._num_answered += 1
            self._gate.correct(sum(answer.prompt_tokens + answer.completion_tokens for answer in result) - tokens)
        if not isinstance(result, Setback):
            self._failures_in_row = 0
        elif result.kind != "busy":
            self._failures_in_row += 1
        return result

    def _judged(
        self, question: CompletionRequest, samples: tuple[int, ...], reply: Reply | Setback
    ) -> list[Completion] | Rejection | Setback:
        if isinstance(reply, Setback):
            if reply.kind == "foreign" and not self._num_answered:
                raise ConfigError(f"{self._not_one}: {reply.told}")
            return reply
        if reply.status != 200:
            return self._not_answered(question, reply)
        try:
            return answers_in(reply.raw, question, samples, self._config.constraint_style)
        except NoLogprobs as error:
            why = f"the answer of '{self._config.model}' is of no use for labels: soft, since {error}"
            if not self._num_answered:
                raise ConfigError(f"teacher.url = '{self._config.url}': {why}") from None
            return Rejection(question.key, "no-logprobs", why, _raw(reply))
        except Nonsense as error:
            if reply.raw.lstrip().startswith(b"<") and not self._num_answered:
                raise ConfigError(f"{self._not_one}: it answered a page: {_words(reply)}") from None
            return Setback("nonsense", f"its answer is no chat completion: {error}", _raw(reply))

    def _not_answered(self, question: CompletionRequest, reply: Reply) -> Rejection | Setback:
        words = _words(reply)
        said = f"HTTP {reply.status}: {words}" if words else f"HTTP {reply.status}"
        match reply.status:
            case 429:
                return self._setback("busy", reply, said)
            case 401 | 403:
                raise ConfigError(f"teacher.api_key: {self._config.url} refuses {self._key} ({said})")
            case 402:
                raise TeacherUnavailable(f"the teacher at {self._config.url} wants to be paid first ({said})")
            case 404 if not self._num_answered:
                raise ConfigError(
                    f"teacher.url = '{self._config.url}' knows no model '{self._config.model}' (teacher.model), or the "
                    f"address is not the one up to and with /v1 ({said})"
                )
            case 400 | 413 | 422:
                return self._refused(question, reply, said)
            case 404 | 503:
                return self._setback("unreachable", reply, said)
            case 408 | 409 | 425 | 500 | 502 | 504:
                return self._setback("failed", reply, said)
            case status if status > 505:
                return self._setback("failed", reply, said)
        if not self._num_answered:
            raise ConfigError(f"{self._not_one}: it answered {said}")
        return self._refused(question, reply, said)

    def _setback(self, kind: Literal["failed", "busy", "unreachable"], reply: Reply, said: str) -> Setback:
        """Raises TeacherUnavailable where the server wants longer to recover than a run should wait."""
        wait = reply.retry_after_seconds
        if wait is not None and wait > LONGEST_PAUSE_SECONDS:
            raise TeacherUnavailable(f"the teacher at {self._config.url} asks to wait for {wait:.0f} s ({said})")
        return Setback(kind, f"it answered {said}", _raw(reply), wait)

    def _refused(self, question: CompletionRequest, reply: Reply, said: str) -> Rejection:
        self._num_refused += 1
        if not self._num_answered:
            self._early_refusals.add(reply.status)
            if self._num_refused == FIRST_ANSWERS and len(self._early_refusals) == 1:
                raise ConfigError(
                    f"teacher.url = '{self._config.url}' refuses all rows, the first {FIRST_ANSWERS} with {said}"
                )
        return Rejection(question.key, f"http-{reply.status}", f"The server refused the row ({said})", _raw(reply))

    def _given_up(self, question: CompletionRequest, setback: Setback) -> Rejection:
        """Raises TeacherUnavailable where it is the server, and not the row."""
        tries = f"{self._config.retries + 1} tries"
        no_row_s_fault = setback.kind == "busy" or (
            setback.kind == "unreachable" and self._failures_in_row > self._config.retries
        )
        if no_row_s_fault or self._failures_in_row >= 2 * self._config.concurrency + 20:
            raise TeacherUnavailable(f"the teacher at {self._config.url} is not available: {setback.told} ({tries})")
        reason = "bad-response" if setback.kind == "nonsense" else "unavailable"
        return Rejection(question.key, reason, f"The server failed in {tries}: {setback.told}", setback.raw)

    @property
    def _not_one(self) -> str:
        return f"teacher.url = '{self._config.url}' is no OpenAI-compatible server (the address up to and with /v1)"

    @property
    def _key(self) -> str:
        return f"the key in {self._config.api_key}" if self._config.api_key else "a request without a key"


def _raw(reply: Reply) -> str:
    return reply.raw[:KEPT_BYTES].decode(errors="replace")


def _words(reply: Reply) -> str:
    """What the server says, as part of a sentence."""
    text = " ".join(re.sub(r"<[^<>]*>", " ", _message(reply.raw.decode(errors="replace"))).split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."


def _message(text: str) -> str:
    """The message in an error's JSON, in whichever of the usual places; else all of it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(value, dict):
        value = value.get("error") or value.get("message") or value.get("detail") or json.dumps(value)
    return value if isinstance(value, str) else text
