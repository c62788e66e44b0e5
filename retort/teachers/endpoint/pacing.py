"""Rate limiting: limits per minute, pauses that a server asks for, exponential backoff, and how long a run waits."""

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BURST_SECONDS = 1.0
"""How long an unused part of a limit is kept."""
MAX_BACKOFF_SECONDS = 60.0


class RateLimit:
    """A limit on units per minute, spread evenly: each reservation delays the next one in proportion to its size."""

    def __init__(self, per_minute: int) -> None:
        self._seconds = 60 / per_minute
        self._free_at = 0.0
        self.sharers = 1
        """Processes that share the limit; each may use an equal part of it."""

    @property
    def _seconds_per_unit(self) -> float:
        return self._seconds * self.sharers

    def reserve(self, units: int) -> float:
        """Reserve units and return the seconds to wait before using them."""
        now = asyncio.get_running_loop().time()
        wait = max(self._free_at - now, 0)
        self._free_at = max(self._free_at, now - BURST_SECONDS) + units * self._seconds_per_unit
        return wait

    def correct(self, units: int) -> None:
        """Account for this many more units (fewer, if negative) used than reserved."""
        self._free_at += units * self._seconds_per_unit

    def hold(self, until: float) -> None:
        """Allow nothing before this time of the event loop."""
        self._free_at = max(self._free_at, until)


class Waits:
    """Adds up the time in which a server answered nothing and requests waited for their next try."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.retries = 0
        self._counted_until = 0.0
        """Time of the event loop."""

    def add(self, since: float) -> None:
        """A request has waited since this time of the event loop."""
        now = asyncio.get_running_loop().time()
        self.seconds += max(0.0, now - max(since, self._counted_until))
        self._counted_until = now

    def answered(self) -> None:
        """The server has answered a request, so the time until now was no mere wait."""
        self._counted_until = asyncio.get_running_loop().time()


class RateLimiter:
    """Limits all requests to one server."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None, waits: Waits) -> None:
        self._waits = waits
        self._requests = RateLimit(requests_per_minute) if requests_per_minute else None
        self._tokens = RateLimit(tokens_per_minute) if tokens_per_minute else None
        self._paused_until = 0.0
        """Time of the event loop."""

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of this many tokens may be sent."""
        wait = max(
            self._requests.reserve(1) if self._requests else 0, self._tokens.reserve(tokens) if self._tokens else 0
        )
        if wait > 0:
            await asyncio.sleep(wait)
        while (wait := self._paused_until - (since := asyncio.get_running_loop().time())) > 0:
            # With jitter: if all waiting requests resumed at once, they would only hit the limit together again.
            await asyncio.sleep(wait * random.uniform(1, 1.1))
            self._waits.add(since)

    def share(self, sharers: int) -> None:
        """Use an equal part of the limits, which so many processes share."""
        for limit in (self._requests, self._tokens):
            if limit:
                limit.sharers = sharers

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)
        for limit in (self._requests, self._tokens):
            if limit:
                limit.hold(self._paused_until)

    def correct(self, tokens: int) -> None:
        """Account for this many more tokens used than passed to `acquire`."""
        if self._tokens:
            self._tokens.correct(tokens)


def backoff(base_seconds: float, failures: int) -> float:
    """Seconds to wait after the n-th consecutive failure, n >= 1: doubles each time, up to a minute; half is random."""
    # The exponent is capped because 2.0**1024 overflows; the limit of a minute is reached long before.
    return min(base_seconds * 2.0 ** min(failures - 1, 30), MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds (>= 0) that a server asks to wait: Retry-After, in seconds or as a date, or OpenAI's and Azure's
    retry-after-ms; None if it is none of them."""
    value = headers.get("Retry-After")
    if milliseconds := headers.get("retry-after-ms"):
        seconds = _seconds(milliseconds)
        return seconds / 1000 if seconds is not None else _seconds(value)
    return _seconds(value)


def _seconds(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds == seconds else None
