"""Assigns the GPUs of a machine to steps: a student gets one, a training as many as the config says, an engine all, and
no two runs get the same.

A run holds a GPU by a lock on a file, which the system releases when the process ends, however it ends. Containers that
share GPUs have no such file in common. Their workers have RETORT_GPUS, the number of GPUs: each is then also a Prefect
concurrency limit with one slot, `gpu-0`, `gpu-1`, ... (`make setup-server GPUS=2` creates them). A container or pod
with GPUs of its own does not need this.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError, concurrency

from retort.config import ExecutionConfig
from retort.errors import ConfigError
from retort.models.gpus import SHARED_GPUS, num_shared, usable_gpus
from retort.recipes.checks import check_gpus_per_student
from retort.steps.base import Step
from tasks.ahead import end_engine, engine_for
from tasks.gpu_locks import Place, give_back, holder, num_users, own_lock, place_on, take
from tasks.progress import tell

LEASE_SECONDS = 60
"""How long after a holder was killed its slot becomes free."""
_ASK_SECONDS = 1.0
_POLL_SECONDS = 0.02
"""Less than the pause of a run between two steps, so that a run that waits for all GPUs gets them in time."""
_SILENT_SECONDS = 10.0


def num_places(execution: ExecutionConfig) -> int:
    """How many GPUs, counted as often as they are shared, steps can have at once on this machine; 0 if it has none that
    they may use."""
    gpus = 0 if execution.device == "cpu" else len(usable_gpus())
    return (_most_wanted(execution) or gpus) if gpus else 0


def num_wanted(step: Step, execution: ExecutionConfig) -> int:
    """How many GPUs a step that is no engine takes. Students that are trained side by side on this machine get equal
    shares: one on each GPU, they need not wait for each other."""
    if step.resources.gpu != "several":
        return 1
    at_once = 1 if execution.student_pool else min(step.siblings, execution.parallel_students or step.siblings)
    return max(1, min(execution.gpus_per_student, len(usable_gpus()) // at_once))


def _most_wanted(execution: ExecutionConfig) -> int:
    """How many GPUs `parallel_students` take, or 0 if there is no such limit."""
    return (execution.parallel_students or 0) * execution.gpus_per_student


@asynccontextmanager
async def gpus_for(step: Step, execution: ExecutionConfig) -> AsyncIterator[Place]:
    """Wait for free GPUs, and yield the place where the step runs: for a labeling whose engine was started ahead, that
    of the engine. If another step wants a GPU first, that engine is ended.

    With more `parallel_students` than GPUs, that many share the GPUs evenly. Raises ConfigError if there are fewer GPUs
    than `gpus_per_student`, or if RETORT_GPUS is set and the limits do not exist: without them, two students could
    share a GPU.
    """
    needed, gpus = step.resources.gpu, usable_gpus()
    if needed == "several":
        check_gpus_per_student(execution)
    if ahead := engine_for(step):
        async with ahead.taken() as place:
            yield place
        return
    if needed != "none":
        await end_engine()
    if not gpus or needed == "none" or (needed != "all" and execution.device == "cpu"):
        yield Place()
        return
    count = len(gpus) if needed == "all" else num_wanted(step, execution)
    shares = 1 if needed == "all" else max(1, -(-_most_wanted(execution) // len(gpus)))
    async with AsyncExitStack() as held:
        if count == len(gpus) > 1:
            mine = gpus
            for gpu in gpus:  # in this order, so that two who want all never wait for each other
                await _first_free(held, [gpu], 1, shares)
            await _take_slots(held, range(len(gpus)), timeout_seconds=None)
        else:
            mine = await _some_of(held, gpus, count, shares)
        yield place_on(mine)


async def _some_of(held: AsyncExitStack, gpus: list[str], count: int, shares: int) -> list[str]:
    order, patience = gpus, _ASK_SECONDS
    while True:
        async with AsyncExitStack() as trying:
            mine = await _first_free(trying, order, count, shares)
            try:
                await _take_slots(trying, map(gpus.index, mine), patience)
            except AcquireConcurrencySlotTimeoutError:  # held by another container, or the server is slow
                order, patience = [*(gpu for gpu in order if gpu not in mine), *mine], min(2 * patience, LEASE_SECONDS)
                continue
            held.push_async_exit(trying.pop_all())
            return mine


async def _first_free(held: AsyncExitStack, gpus: list[str], count: int, shares: int) -> list[str]:
    """Hold the first of the GPUs that no other process holds and that have the fewest steps of this one: `count` at
    once, for two who keep some while they wait for others may wait for ever."""
    started, told = time.monotonic(), False
    while True:
        with ExitStack() as trying:
            mine: list[str] = []
            for gpu in sorted(gpus, key=lambda gpu: num_users(own_lock(gpu))):
                if len(mine) < count and take(own_lock(gpu), shares):
                    trying.callback(give_back, own_lock(gpu))
                    mine.append(gpu)
            if len(mine) == count:
                held.enter_context(trying.pop_all())
                return mine
        if not told and time.monotonic() - started > _SILENT_SECONDS:
            holders = {gpu: holder(own_lock(gpu)) for gpu in gpus}
            others = [f"GPU {gpu} (process {pid})" for gpu, pid in holders.items() if pid not in (None, os.getpid())]
            if others:
                told = True
                tell(f"waiting for {', '.join(others)}")
        await asyncio.sleep(_POLL_SECONDS)


async def _take_slots(held: AsyncExitStack, numbers: Iterable[int], timeout_seconds: float | None) -> None:
    if not num_shared():
        return
    names = [f"gpu-{number}" for number in numbers]
    try:
        await held.enter_async_context(
            concurrency(names, timeout_seconds=timeout_seconds, strict=True, lease_duration=LEASE_SECONDS)
        )
    except ConcurrencySlotAcquisitionError as error:
        raise ConfigError(
            f"{SHARED_GPUS} is set, but the Prefect server lacks a concurrency limit of {', '.join(names)}: run "
            "`make setup-server GPUS=N`"
        ) from error
