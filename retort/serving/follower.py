"""Follows an alias of a model registry, such as `champion`.

The version that the alias names now is loaded beside the student that serves, labels one text, and takes its place.
Whatever fails on the way leaves the one that serves where it is.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel

from retort.errors import RetortError, first_line
from retort.io.terminal import say
from retort.serving.addresses import found_version, named_version
from retort.serving.metrics import Metrics
from retort.serving.served import Served
from retort.serving.student import LoadedStudent, load_student

if TYPE_CHECKING:
    from retort.tracking.registry import ModelVersion

MOST_PAUSE_SECONDS = 300.0
"""A version that failed is tried again after a pause, which doubles up to this."""


class Failure(BaseModel):
    kind: Literal["registry", "version"]
    """registry: it does not tell where the alias points. version: what the alias names cannot be loaded."""
    version: str | None
    since: datetime


class Following(BaseModel):
    """For those who may not know more; the sentence that says why is in the log."""

    model: str
    checked_at: datetime | None
    """When the registry last told where the alias points."""
    failure: Failure | None


class Alias(NamedTuple):
    model: str
    """`models:/NAME@ALIAS`."""
    tracking: str | None
    """The registry's address; None: MLFLOW_TRACKING_URI."""
    seconds: float
    """How often the registry is asked."""


def load_version(model: str, version: "ModelVersion") -> LoadedStudent:
    """The version's student, which has labeled a text."""
    student = load_student(found_version(model, version))
    student.try_out()
    return student


class Follower:
    def __init__(
        self,
        served: Served,
        alias: Alias,
        metrics: Metrics,
        *,
        named: "Callable[[str, str | None], ModelVersion]" = named_version,
        load: "Callable[[str, ModelVersion], LoadedStudent]" = load_version,
    ) -> None:
        """`named` asks the registry, and `load` loads a version; both block, and run in threads."""
        self._served, self._alias, self._metrics = served, alias, metrics
        self._named, self._load = named, load
        self._checked_at: datetime | None = None
        self._failure: Failure | None = None
        self._reason = ""
        self._pause_seconds = 0.0
        self._next_try = 0.0

    @property
    def state(self) -> Following:
        return Following(model=self._alias.model, checked_at=self._checked_at, failure=self._failure)

    async def follow(self) -> None:
        """Check for ever."""
        while True:
            await asyncio.sleep(self._alias.seconds)
            await self.check()

    async def check(self) -> None:
        """Ask once where the alias points, and let that version serve if it is another one."""
        try:
            version = await asyncio.to_thread(self._named, self._alias.model, self._alias.tracking)
        except Exception as error:  # whatever it is, the student goes on, and it is told
            self._failed("registry", None, error)
            return
        self._checked_at = datetime.now(UTC)
        self._metrics.last_check.set_to_current_time()
        name = self._served.lane.student.name
        if (version.version, version.key) == (name.version, name.key):
            self._succeeded()
        elif not self._is_put_off(version.version):
            await self._take(version)

    async def _take(self, version: "ModelVersion") -> None:
        before = self._served.lane.student.name
        try:
            student = await asyncio.to_thread(self._load, self._alias.model, version)
            await self._served.replace(student)
        except Exception as error:  # the same
            self._metrics.reloads.labels("failed").inc()
            self._put_off(version.version)
            self._failed("version", version.version, error)
            return
        self._metrics.reloads.labels("loaded").inc()
        self._succeeded()
        say(f"{student.name} serves now, in place of {before}", file=sys.stderr)

    def _is_put_off(self, version: str) -> bool:
        failure = self._failure
        return failure is not None and failure.version == version and time.monotonic() < self._next_try

    def _put_off(self, version: str) -> None:
        is_again = self._failure is not None and self._failure.version == version
        self._pause_seconds = min(2 * self._pause_seconds if is_again else self._alias.seconds, MOST_PAUSE_SECONDS)
        self._next_try = time.monotonic() + self._pause_seconds

    def _succeeded(self) -> None:
        if self._failure is not None:
            say(f"{self._alias.model} can be followed again", file=sys.stderr)
        self._failure, self._reason = None, ""
        for kind in ("registry", "version"):
            self._metrics.failing.labels(kind).set(0)

    def _failed(self, kind: Literal["registry", "version"], version: str | None, error: Exception) -> None:
        reason = str(error) if isinstance(error, RetortError) else f"{type(error).__name__}: {first_line(error)}"
        what = f"version {version} cannot be loaded" if version else f"where {self._alias.model} points is not known"
        known = self._failure
        if known is None or (known.kind, known.version) != (kind, version):
            self._failure = Failure(kind=kind, version=version, since=datetime.now(UTC))
        if (sentence := f"{what}, so {self._served.lane.student.name} goes on: {reason}") != self._reason:
            say(sentence, file=sys.stderr)  # once, not at every check
        self._reason = sentence
        for one in ("registry", "version"):
            self._metrics.failing.labels(one).set(one == kind)
