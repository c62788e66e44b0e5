"""Starts a teacher's engine while the run that will need it is itself still starting.

An engine takes a minute or more to start, Prefect ten seconds or more. So the labeling with which a new run begins gets
its GPUs before Prefect is there, and a supervised child that starts the engine on them and waits for the labeling. The
labeling finds both; its own time limits, errors and retries are those that it would have without. Anyone else of the
run who wants a GPU before it ends the engine, and so does the end of the run.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import replace

from retort.config import RunSettings
from retort.errors import RetortError
from retort.models.gpus import num_shared, usable_gpus
from retort.recipes.execute import start_ahead
from retort.steps.base import Step
from retort.steps.pseudolabel_llm import PseudolabelLlm
from tasks.child_process import begin_in_child, end_kept
from tasks.gpu_locks import Place, give_back, own_lock, place_on, take

MOST_ROWS = 100_000
"""With more, finding out whether the ledger lacks any takes as long as the engine's start, and labeling far longer."""
_BEGIN_SECONDS = 300.0
"""Most seconds until the engine's process is begun."""


class _Ahead:
    """The engine of one labeling, on GPUs that are held for it."""

    def __init__(self, settings: RunSettings, step: PseudolabelLlm, place: Place, held: ExitStack) -> None:
        self.key, self.place, self.held = step.key, place, held
        self._loop = asyncio.new_event_loop()  # a thread's own, as nothing else runs before Prefect does
        self._beginning = self._loop.create_task(self._begin(settings, step))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with closing(self._loop):
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._beginning)
            self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _begin(self, settings: RunSettings, step: PseudolabelLlm) -> None:
        with suppress(RetortError, OSError):  # the labeling meets the same error, and tells it
            await begin_in_child(start_ahead, settings, step, timeout_seconds=_BEGIN_SECONDS, place=self.place)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Place]:
        """Its place, once the engine is begun. Leaving ends the engine, unless a call at the place has taken it."""
        with self.held:
            try:
                await self._begun()
                yield self.place
            finally:
                await self._ended()

    async def end(self) -> None:
        """End the engine, also if it is not begun yet, and give its GPUs back."""
        with self.held:
            await self._ended()

    async def _begun(self) -> None:
        await asyncio.to_thread(self._thread.join)

    async def _ended(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: it has begun
            self._loop.call_soon_threadsafe(self._beginning.cancel)
        await self._begun()
        await end_kept(self.place)


_ahead: list[_Ahead] = []
"""At most one."""


def begin_engine(settings: RunSettings, missing: Sequence[Step]) -> None:
    """Start the engine of the first of the steps that wants a GPU, if that is a labeling by an engine, on this machine,
    of not too many rows, and if its GPUs are free. `missing` are all steps that the run will make, in order."""
    execution = settings.execution
    first = next((step for step in missing if step.resources.gpu != "none"), None)
    is_elsewhere = execution.teacher_pool or execution.shard_rows or num_shared()
    if not isinstance(first, PseudolabelLlm) or not first.has_engine or first.most_rows > MOST_ROWS or is_elsewhere:
        return
    held = ExitStack()
    if place := _all_free_gpus(held, first.key):
        _ahead.append(_Ahead(settings, first, place, held))


async def end_engine() -> None:
    """End the engine that was started ahead, if no labeling has taken it."""
    while _ahead:
        await _ahead.pop().end()


async def end_engine_for(step: Step) -> None:
    """Likewise, if it was started for this step."""
    if one := engine_for(step):
        await one.end()


def engine_for(step: Step) -> _Ahead | None:
    """The engine that was started ahead for the step, which is the step's from now on."""
    return _ahead.pop() if any(one.key == step.key for one in _ahead) else None


def _all_free_gpus(held: ExitStack, kept_for: str) -> Place | None:
    """Hold all GPUs of this machine, if nobody else holds one. Without GPUs, the CPU."""
    gpus = usable_gpus()
    with ExitStack() as trying:
        for lock in map(own_lock, gpus):
            if not take(lock, 1):
                return None
            trying.callback(give_back, lock)
        held.enter_context(trying.pop_all())
    return replace(place_on(gpus) if gpus else Place(), kept_for=kept_for)
