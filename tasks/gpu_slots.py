"""Assigns the GPUs of a machine to steps: a student gets one, an engine all, and no two runs get the same.

A run holds a GPU by a lock on a file, which the system releases when the process ends, however it ends. Containers that
share GPUs have no such file in common. Their workers have RETORT_GPUS, the number of GPUs: each is then also a Prefect
concurrency limit with one slot, `gpu-0`, `gpu-1`, ... (`make setup-server GPUS=2` creates them). A container or pod
with GPUs of its own does not need this.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError, concurrency

from retort.config import ExecutionConfig
from retort.errors import ConfigError
from retort.models.gpus import identity, visible_gpus
from retort.steps.base import Step
from tasks.gpu_locks import Place, give_back, holder, lock_of, num_users, take
from tasks.progress import tell

SHARED_GPUS = "RETORT_GPUS"
LEASE_SECONDS = 60
"""How long after a holder was killed its slot becomes free."""
_ASK_SECONDS = 1.0
_POLL_SECONDS = 0.02
"""Less than the pause of a run between two steps, so that a run that waits for all GPUs gets them in time."""
_SILENT_SECONDS = 10.0


def num_places(execution: ExecutionConfig) -> int:
    """How many steps that need a GPU can run at once on this machine; 0 if it has none that they may use."""
    gpus = 0 if execution.device == "cpu" else len(_gpus())
    return (execution.parallel_students or gpus) if gpus else 0


@asynccontextmanager
async def gpus_for(step: Step, execution: ExecutionConfig) -> AsyncIterator[Place]:
    """Wait for free GPUs, and yield the place where the step runs.

    With more `parallel_students` than GPUs, that many share the GPUs evenly. Raises ConfigError if RETORT_GPUS is set
    and the limits do not exist: without them, two students could share a GPU.
    """
    needed, gpus = step.resources.gpu, _gpus()
    if not gpus or needed == "none" or (needed == "one" and execution.device == "cpu"):
        yield Place()
        return
    async with AsyncExitStack() as held:
        if needed == "all":
            mine = gpus
            for gpu in gpus:  # in this order, so that two who want all never wait for each other
                await _first_free(held, [gpu], 1)
            await _take_slots(held, range(len(gpus)), timeout_seconds=None)
        else:
            mine = [await _one_of(held, gpus, -(-(execution.parallel_students or 1) // len(gpus)))]
        order = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        yield Place(tuple(map(_lock, mine)), {**order, "CUDA_VISIBLE_DEVICES": ",".join(mine)})


def _num_shared() -> int:
    return int(os.environ.get(SHARED_GPUS, "0"))


def _gpus() -> list[str]:
    """Entries of CUDA_VISIBLE_DEVICES."""
    shared = _num_shared()
    gpus = visible_gpus() or list(map(str, range(shared)))
    return gpus[:shared] if shared else gpus


def _lock(gpu: str) -> Path:
    return lock_of(identity(gpu))


async def _one_of(held: AsyncExitStack, gpus: list[str], shares: int) -> str:
    order, patience = gpus, _ASK_SECONDS
    while True:
        async with AsyncExitStack() as trying:
            gpu = await _first_free(trying, order, shares)
            try:
                await _take_slots(trying, [gpus.index(gpu)], patience)
            except AcquireConcurrencySlotTimeoutError:  # held by another container, or the server is slow
                order, patience = [*(other for other in order if other != gpu), gpu], min(2 * patience, LEASE_SECONDS)
                continue
            held.push_async_exit(trying.pop_all())
            return gpu


async def _first_free(held: AsyncExitStack, gpus: list[str], shares: int) -> str:
    """Hold the first of the GPUs that no other process holds and that has the fewest steps of this one."""
    started, told = time.monotonic(), False
    while True:
        for gpu in sorted(gpus, key=lambda gpu: num_users(_lock(gpu))):
            if take(_lock(gpu), shares):
                held.callback(give_back, _lock(gpu))
                return gpu
        if not told and time.monotonic() - started > _SILENT_SECONDS:
            holders = {gpu: holder(_lock(gpu)) for gpu in gpus}
            others = [f"GPU {gpu} (process {pid})" for gpu, pid in holders.items() if pid not in (None, os.getpid())]
            if others:
                told = True
                tell(f"waiting for {', '.join(others)}")
        await asyncio.sleep(_POLL_SECONDS)


async def _take_slots(held: AsyncExitStack, numbers: Iterable[int], timeout_seconds: float | None) -> None:
    if not _num_shared():
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
