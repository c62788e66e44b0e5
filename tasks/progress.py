"""Progress of one step: a bar in a terminal, else a line when it is made, and a progress artifact in Prefect."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
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
_log = logging.getLogger(__name__)


def tell(text: str) -> None:
    """A line on the command line, or in the task's log."""
    if bars := TERMINAL.get():
        bars.console.print(text, highlight=False, markup=False)
    else:
        (get_run_logger() if TaskRunContext.get() else _log).warning("%s", text)


@contextlib.asynccontextmanager
async def progress_of(step: Step) -> AsyncIterator[Progress]:
    """Yield a callback for the child's progress messages while the step is made."""
    bars, started = TERMINAL.get(), time.monotonic()
    bar = bars.add_task(step.name, total=None) if bars and bars.console.is_terminal else None
    share = 0.0

    def on_progress(done: int, total: int, note: str) -> None:
        nonlocal share
        share = done / max(1, total)
        if bars and bar is not None:
            bars.update(bar, completed=done, total=total, description=f"{step.name}  [dim]{note}[/dim]")

    publisher = asyncio.create_task(_publish(step, lambda: share))
    try:
        yield on_progress
        if bars and bar is None:
            bars.console.print(f"{step.name}: made in {time.monotonic() - started:.0f} s", highlight=False)
    finally:
        publisher.cancel()
        (outcome,) = await asyncio.gather(publisher, return_exceptions=True)
        if isinstance(outcome, Exception):  # a server that is briefly unavailable must not fail the step
            _log.warning("progress of %s was not shown: %s", step.name, outcome)
        if bars and bar is not None:
            bars.remove_task(bar)


async def _publish(step: Step, share: Callable[[], float]) -> None:
    """Publish progress. Steps that take only a moment get no artifact."""
    artifact: UUID | None = None
    key = "progress-" + step.name.replace("/", "-")
    try:
        while True:
            await asyncio.sleep(_PUBLISH_SECONDS)
            percent = round(100 * share(), 1)
            if artifact is None:
                artifact = await acreate_progress_artifact(percent, key=key, description=step.name)
            else:
                await aupdate_progress_artifact(artifact, progress=percent)
    finally:
        if artifact is not None:
            await aupdate_progress_artifact(artifact, progress=100.0 * share())
