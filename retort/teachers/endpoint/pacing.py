"""When a request may be sent: server limits a minute, pauses that a server asks for, growing waits after failures."""

import asyncio
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BURST_SECONDS = 1.0
"""What was not used of a limit is kept for so long."""
LONGEST_BACKOFF_SECONDS = 60.0


class Limit:
    """So many units a minute, evenly: each take moves the next one by its size."""

    def __init__(self, per_minute: int) -> None:
        self._seconds_per_unit = 60 / per_minute
        self._free_at = 0.0

    def take(self, units: int) -> float:
        """Seconds to wait before using them."""
        now = asyncio.get_running_loop().time()
        wait = max(self._free_at - now, 0)
        self._free_at = max(self._free_at, now - BURST_SECONDS) + units * self._seconds_per_unit
        return wait

    def correct(self, units: int) -> None:
        """So many more (or fewer, if negative) were used than taken."""
        self._free_at += units * self._seconds_per_unit

    def hold(self, until: float) -> None:
        """Nothing is free before this time of the loop."""
        self._free_at = max(self._free_at, until)


class Gate:
    """Every request of a server passes here."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests = Limit(requests_per_minute) if requests_per_minute else None
        self._tokens = Limit(tokens_per_minute) if tokens_per_minute else None
        self._open_at = 0.0
        """Time of the loop."""

    async def enter(self, tokens: int) -> None:
        """Waits until a request of so many tokens may be sent."""
        wait = max(self._requests.take(1) if self._requests else 0, self._tokens.take(tokens) if self._tokens else 0)
        if wait > 0:
            await asyncio.sleep(wait)
        while (wait := self._open_at - asyncio.get_running_loop().time()) > 0:
            # Not all at once: those who waited would only meet the next refusal together.
            await asyncio.sleep(wait * random.uniform(1, 1.1))

    def pause(self, seconds: float) -> None:
        self._open_at = max(self._open_at, asyncio.get_running_loop().time() + seconds)
        for limit in (self._requests, self._tokens):
            if limit:
                limit.hold(self._open_at)

    def correct(self, tokens: int) -> None:
        """So many more tokens were used than said at `enter`."""
        if self._tokens:
            self._tokens.correct(tokens)


def backoff(base_seconds: float, failures: int) -> float:
    """Seconds to wait after the n-th failure in a row, n >= 1: doubled each time, up to a minute, half of it random."""
    # 2.0**1024 is no float; long before, the minute is reached.
    return min(base_seconds * 2.0 ** min(failures - 1, 30), LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1)


def retry_after(value: str | None) -> float | None:
    """Seconds >= 0 that a Retry-After header asks for, in seconds or as a date; None where it says neither."""
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
