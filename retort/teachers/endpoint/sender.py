"""Sends one request to an endpoint with retries: what is retried, what is rejected, and what ends the run."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from retort.config import EndpointConfig
from retort.errors import ConfigError, TeacherUnavailable
from retort.teachers.endpoint.chat import BodyWriter, MalformedResponse, MissingLogprobs, parse_response
from retort.teachers.endpoint.connection import FailedAttempt, Response
from retort.teachers.endpoint.errors import INSTEAD, is_about_key, refused_field, server_message
from retort.teachers.endpoint.pacing import RateLimiter, Waits, backoff
from retort.teachers.requests import Completion, CompletionRequest, Rejection

Answer = Completion | Rejection

MAX_EARLY_REJECTIONS = 20
"""If the server rejects this many rows before completing one, the rows are not to blame."""
MANY_FORBIDDEN = 5
"""If so many rows in a row get a 403, it is the key."""
FREE_WAITS = 10
"""How many 429s in a row one request may get, while no other completes, before each further one counts as a failure."""
MAX_PAUSE_SECONDS = 600.0
"""A server that demands a longer pause counts as unavailable for this run."""
_ROWS_STATUSES = (400, 413, 422, 451)
"""What a server answers if a row is at fault."""
_PASSING_STATUSES = (408, 409, 424, 425, 499, 500, 502, 504)
"""What may be another if the request is repeated."""
MAX_RAW_BYTES = 10_000
"""How much of a server's response is kept as raw text."""


class RequestSender:
    """Sends requests to one endpoint. Shared by all requests, so that each retry takes the others' outcomes into
    account."""

    def __init__(
        self,
        config: EndpointConfig,
        post: Callable[[bytes], Awaitable[Response | FailedAttempt]],
        backoff_seconds: float,
    ) -> None:
        self._config, self._post, self._backoff_seconds = config, post, backoff_seconds
        self._body_writer = BodyWriter.of(config)
        self.waits = Waits()
        self.limiter = RateLimiter(config.requests_per_minute, config.tokens_per_minute, self.waits)
        self._num_completed = self._num_rejected = self._consecutive_failures = self._consecutive_forbidden = 0
        self._early_rejections: set[int] = set()
        """HTTP statuses of the rejections before the first completion."""
        self.in_flight: set[asyncio.Task[object] | None] = set()
        """Tasks with a request in flight, which may have been paid for."""
        self.stopped = False
        """If set, no request is attempted again."""

    async def send(self, request: CompletionRequest, outcomes: list[Answer]) -> None:
        """Append a Completion per sample to `outcomes`, or one Rejection after those received; fewer only once stopped.

        Raises ConfigError, TeacherUnavailable.
        """
        missing, tries, failures, waits, waited = request.samples, 0, 0, 0, 0.0
        at_first = progress = self._progress
        while missing and not self.stopped:
            result = await self._attempt(request, missing[: self._config.samples_per_request])
            if isinstance(result, Rejection):
                outcomes.append(result)
                return
            if isinstance(result, list):
                outcomes += result
                missing, tries, failures, waits, waited = missing[len(result) :], 0, 0, 0, 0.0
                continue
            if self.stopped:
                return
            tries += 1
            if result.kind == "busy":
                waits = waits + 1 if progress == self._progress else 1
                progress = self._progress
                failures += waits > FREE_WAITS
                seconds = result.wait_seconds or backoff(self._backoff_seconds, waits)
            else:
                failures += 1
                seconds = max(backoff(self._backoff_seconds, failures), result.wait_seconds or 0)
            waited += seconds
            if failures > self._config.retries or (most := self._config.row_wait_seconds) < waited:
                within = f"{tries} tries"
                if failures <= self._config.retries:
                    within += f", and the next one would pass teacher.row_wait_seconds = {most:g}"
                outcomes.append(self._give_up(request, result, within, is_served=self._progress > at_first))
                return
            await self._wait(seconds, result)

    async def _wait(self, seconds: float, failure: FailedAttempt) -> None:
        """Wait until a request may be repeated; after a 429, all requests do. Raises TeacherUnavailable if the run
        would wait for too long."""
        most, so_far = self._config.run_wait_seconds, self.waits.seconds
        if so_far + seconds > most:
            raise TeacherUnavailable(
                f"the teacher at {self._config.url} is not available: {failure.message}; after "
                f"{so_far:.0f} s of waiting in all, {seconds:.0f} s more would pass teacher.run_wait_seconds = {most:g}"
            )
        self.waits.retries += 1
        if failure.kind == "busy":
            self.limiter.pause(seconds)
            return
        since = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        self.waits.add(since)

    @property
    def _progress(self) -> int:
        """A counter that grows whenever the server handles a row."""
        return self._num_completed + self._num_rejected

    async def _attempt(
        self, request: CompletionRequest, samples: tuple[int, ...]
    ) -> list[Completion] | Rejection | FailedAttempt:
        tokens = self._body_writer.num_tokens(request)
        await self.limiter.acquire(tokens)
        task = asyncio.current_task()
        self.in_flight.add(task)
        try:
            response = await self._post(self._body_writer.body(request, samples))
        finally:
            self.in_flight.discard(task)
        result = self._interpret(request, samples, response)
        if isinstance(result, list):
            self._num_completed += 1
            self._consecutive_forbidden = 0
            self.limiter.correct(
                sum(completion.prompt_tokens + completion.completion_tokens for completion in result) - tokens
            )
        if not isinstance(result, FailedAttempt):
            self.waits.answered()
            self._consecutive_failures = 0
        elif result.kind != "busy":
            self._consecutive_failures += 1
        return result

    def _interpret(
        self, request: CompletionRequest, samples: tuple[int, ...], response: Response | FailedAttempt
    ) -> list[Completion] | Rejection | FailedAttempt:
        if isinstance(response, FailedAttempt):
            if response.kind == "redirected":
                raise self._end_of_run(f"teacher.url = '{self._config.url}': {response.message}")
            if response.kind == "incompatible" and not self._num_completed:
                raise ConfigError(f"{self._not_compatible}: {response.message}")
            return response
        if response.status != 200:
            return self._interpret_error(request, response)
        try:
            return parse_response(response.raw, request, samples, self._config.constraint_style)
        except MissingLogprobs as error:
            why = f"the answer of '{self._config.model}' is of no use for labels: soft, since {error}"
            if not self._num_completed:
                raise ConfigError(f"teacher.url = '{self._config.url}': {why}") from None
            return Rejection(request.key, "no-logprobs", why, _raw_text(response))
        except MalformedResponse as error:
            if response.raw.lstrip().startswith(b"<") and not self._num_completed:
                raise ConfigError(
                    f"{self._not_compatible}: it answered a page: {server_message(response.raw)}"
                ) from None
            return FailedAttempt("malformed", f"its answer is no chat completion: {error}", _raw_text(response))

    def _interpret_error(self, request: CompletionRequest, response: Response) -> Rejection | FailedAttempt:
        message = server_message(response.raw)
        summary = f"HTTP {response.status}: {message}" if message else f"HTTP {response.status}"
        if field := refused_field(response.raw, self._config.body):
            advice = INSTEAD.get(field, f"take '{field}' out of teacher.body")
            raise ConfigError(f"teacher.url = '{self._config.url}' refuses the field '{field}' ({summary}); {advice}")
        match response.status:
            case 429:
                return self._failed_attempt("busy", response, summary)
            # "flagged" is OpenRouter's word for a row that moderation refuses.
            case 403 if b"flagged" in response.raw.lower() or self._may_be_the_row():
                return self._reject(request, response, summary)
            case 401 | 403 | 400 if response.status != 400 or self._is_about_key(response):
                raise ConfigError(f"teacher.api_key: {self._config.url} refuses {self._key_description} ({summary})")
            case 402:
                raise TeacherUnavailable(f"the teacher at {self._config.url} wants to be paid first ({summary})")
            case 404 if not self._num_completed:
                raise ConfigError(
                    f"teacher.url = '{self._config.url}' knows no model '{self._config.model}' (teacher.model), or the "
                    f"address is not the one up to and with /v1 ({summary})"
                )
            case status if status in _ROWS_STATUSES:
                return self._reject(request, response, summary)
            case 404 | 503:
                return self._failed_attempt("unreachable", response, summary)
            case status if status in _PASSING_STATUSES or status > 505:
                return self._failed_attempt("failed", response, summary)
        raise self._end_of_run(f"{self._not_compatible}: it answered {summary}")

    def _end_of_run(self, why: str) -> ConfigError | TeacherUnavailable:
        """No row is to blame. A server that has answered before may do so again."""
        if not self._num_completed:
            return ConfigError(why)
        return TeacherUnavailable(f"the teacher no longer answers as it did: {why}")

    def _may_be_the_row(self) -> bool:
        """Whether a 403 amid completions may be about its row, whose text a firewall dislikes."""
        self._consecutive_forbidden += 1
        return self._num_completed > 0 and self._consecutive_forbidden < MANY_FORBIDDEN

    def _is_about_key(self, response: Response) -> bool:
        """Whether a 400 says what others say with a 401 (Gemini)."""
        return not self._num_completed and is_about_key(response.raw)

    def _failed_attempt(
        self, kind: Literal["failed", "busy", "unreachable"], response: Response, summary: str
    ) -> FailedAttempt:
        """Raises TeacherUnavailable if the server demands a longer pause than a run should wait."""
        wait = response.retry_after_seconds
        if wait is not None and wait > MAX_PAUSE_SECONDS:
            raise TeacherUnavailable(f"the teacher at {self._config.url} asks to wait for {wait:.0f} s ({summary})")
        return FailedAttempt(kind, f"it answered {summary}", _raw_text(response), wait)

    def _reject(self, request: CompletionRequest, response: Response, summary: str) -> Rejection:
        self._num_rejected += 1
        if not self._num_completed:
            self._early_rejections.add(response.status)
            if self._num_rejected == MAX_EARLY_REJECTIONS and len(self._early_rejections) == 1:
                raise ConfigError(
                    f"teacher.url = '{self._config.url}' refuses all rows, "
                    f"the first {MAX_EARLY_REJECTIONS} with {summary}"
                )
        return Rejection(
            request.key, f"http-{response.status}", f"The server refused the row ({summary})", _raw_text(response)
        )

    def _give_up(
        self, request: CompletionRequest, failure: FailedAttempt, within: str, *, is_served: bool
    ) -> Rejection:
        """Reject the row after its last attempt. Raises TeacherUnavailable if the server is to blame, not the row;
        `is_served` says whether it handled other rows meanwhile."""
        is_server_fault = (failure.kind == "busy" and not is_served) or (
            failure.kind == "unreachable" and self._consecutive_failures > self._config.retries
        )
        if is_server_fault or self._consecutive_failures >= 2 * self._config.concurrency + 20:
            raise TeacherUnavailable(
                f"the teacher at {self._config.url} is not available: {failure.message} ({within})"
            )
        reason = "bad-response" if failure.kind == "malformed" else "unavailable"
        return Rejection(request.key, reason, f"The server failed in {within}: {failure.message}", failure.raw)

    @property
    def _not_compatible(self) -> str:
        return f"teacher.url = '{self._config.url}' is no OpenAI-compatible server (the address up to and with /v1)"

    @property
    def _key_description(self) -> str:
        return f"the key in {self._config.api_key}" if self._config.api_key else "a request without a key"


def _raw_text(response: Response) -> str:
    return response.raw[:MAX_RAW_BYTES].decode(errors="replace")
