"""Does all shards of a step at once, and tells which are done and which take much longer than the others."""

import asyncio
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prefect import get_run_logger

from retort.recipes.base import Do, together
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.split_rows import Shard

STRAGGLER_TIMES, STRAGGLER_SECONDS = 3.0, 60.0
"""A shard is told that takes so many times as long as the median of those that are made, and no less than so long."""
LOOK_SECONDS = 5.0
_begun: dict[str, float] = {}
"""When (`time.monotonic`) the shards of this process that are not done were begun, by key."""


def mark_begun(step: Step) -> None:
    """To be called when a step is worked on, and no longer waits for a worker or a GPU."""
    if isinstance(step, Shard):
        _begun[step.key] = time.monotonic()


async def do_shards(name: str, shards: Sequence[Shard], do: Do) -> tuple[ArtifactRef, ...]:
    """Do all shards of the step of this name. If one fails, the others still finish, then its error is raised."""
    watch = Watch(name, {shard.key: shard.name for shard in shards}, get_run_logger())
    looking = asyncio.create_task(watch.look())
    try:
        return await together(watch.done(shard, do) for shard in shards)
    finally:
        looking.cancel()


@dataclass
class Watch:
    """Tells how far the shards of a step are."""

    step: str
    waiting: dict[str, str]
    """Names of the shards that are not done, by key."""
    log: "logging.Logger | logging.LoggerAdapter[logging.Logger]"
    seconds: list[float] = field(default_factory=list)
    """How long those took that were made."""
    told: set[str] = field(default_factory=set)
    """Keys of stragglers."""

    async def done(self, shard: Shard, do: Do) -> ArtifactRef:
        try:
            ref = await do(shard)
        finally:
            began = _begun.pop(shard.key, None)
        del self.waiting[shard.key]
        if began is not None:
            self.seconds.append(time.monotonic() - began)
            left = len(self.waiting)
            self.log.info("%s: made in %.0f s; %d shards of %s left", shard.name, self.seconds[-1], left, self.step)
        return ref

    async def look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for key, seconds in self.stragglers(_begun, time.monotonic()):
                self.told.add(key)
                self.log.warning(
                    "%s takes much longer than the others: %.0f s so far, where the median of the %d that were made "
                    "is %.0f s",
                    *(self.waiting[key], seconds, len(self.seconds), statistics.median(self.seconds)),
                )

    def stragglers(self, began: Mapping[str, float], now: float) -> Iterator[tuple[str, float]]:
        """(key, seconds so far) of each shard that was not told yet and takes too long."""
        if not self.seconds:
            return
        most = max(STRAGGLER_SECONDS, STRAGGLER_TIMES * statistics.median(self.seconds))
        for key in self.waiting.keys() & began.keys() - self.told:
            if now - began[key] > most:
                yield key, now - began[key]
