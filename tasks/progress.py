"""Progress of one step: a bar in a terminal, else a line a minute and one when it is made, and a progress artifact in
Prefect."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.context import TaskRunContext
from rich.progress import Progress as Bars

from retort.records.base import Progress
from retort.steps.base import Step

TERMINAL: ContextVar[Bars | None] = ContextVar("TERMINAL", default=None)
"""The progress bars, if the flow was started on the command line."""

_PUBLISH_SECONDS = 2.0
_TELL_SECONDS = 60.0
_log = logging.getLogger(__name__)


def tell(text: str) -> None:
    """A line on the command line, or in the task's log."""
    if bars := TERMINAL.get():
        bars.console.print(text, highlight=False, markup=False)
    else:
        (get_run_logger() if TaskRunContext.get() else _log).warning("%s", text)


@dataclass(slots=True)
class _Course:
    """How far a step has come."""

    share: float = 0.0
    note: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


@contextlib.asynccontextmanager
async def progress_of(step: Step) -> AsyncIterator[Progress]:
    """Yield a callback for the child's progress messages while the step is made."""
    bars, course = TERMINAL.get(), _Course()
    bar = bars.add_task(step.name, total=None) if bars and bars.console.is_terminal else None

    def on_progress(done: int, total: int, note: str) -> None:
        course.share, course.note = done / max(1, total), note
        if bars and bar is not None:
            bars.update(bar, completed=done, total=total, description=f"{step.name}  [dim]{note}[/dim]")

    shown = [asyncio.create_task(_publish(step, course))]
    if bars and bar is None:
        shown.append(asyncio.create_task(_tell_each_minute(step, course)))
    try:
        yield on_progress
        if bars and bar is None:
            tell(f"{step.name}: made in {course.seconds:.0f} s")
    finally:
        for one in shown:
            one.cancel()
        outcome, *_ = await asyncio.gather(*shown, return_exceptions=True)
        if isinstance(outcome, Exception):  # a server that is briefly unavailable must not fail the step
            _log.warning("progress of %s was not shown: %s", step.name, outcome)
        if bars and bar is not None:
            bars.remove_task(bar)


async def _tell_each_minute(step: Step, course: _Course) -> None:
    """So that a log shows that a long step lives, and what it waits for."""
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        note = f", {course.note}" if course.note else ""
        tell(f"{step.name}: {course.share:.0%} after {course.seconds:.0f} s{note}")


async def _publish(step: Step, course: _Course) -> None:
    """Publish progress. Steps that take only a moment get no artifact."""
    artifact: UUID | None = None
    key = "progress-" + step.name.replace("/", "-")
    try:
        while True:
            await asyncio.sleep(_PUBLISH_SECONDS)
            percent = round(100 * course.share, 1)
            if artifact is None:
                artifact = await acreate_progress_artifact(percent, key=key, description=step.name)
            else:
                await aupdate_progress_artifact(artifact, progress=percent)
    finally:
        if artifact is not None:
            await aupdate_progress_artifact(artifact, progress=100.0 * course.share)
