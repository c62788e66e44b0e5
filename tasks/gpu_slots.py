"""Assigns GPUs to steps on a machine with several.

If the workers on a machine share its GPUs, RETORT_GPUS must be set to the number of GPUs. Each GPU is then a Prefect
concurrency limit with one slot, `gpu-0`, `gpu-1`, ... (`make setup-server GPUS=2` creates them). A step holds one of
them, or a teacher all, while its child process runs. A container or pod with GPUs of its own does not need this.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError, concurrency

from retort.errors import ConfigError
from retort.steps.base import Step

SHARED_GPUS = "RETORT_GPUS"
LEASE_SECONDS = 60
"""How long after a holder was killed its slot becomes free."""
_ASK_SECONDS = 1.0


@asynccontextmanager
async def gpus_for(step: Step) -> AsyncIterator[Mapping[str, str]]:
    """Wait for free GPUs, and yield the environment in which the child sees only those.

    Raises ConfigError if the limits do not exist: without them, two students could share a GPU.
    """
    count = int(os.environ.get(SHARED_GPUS, "0"))
    if not count or step.resources.gpu == "none":
        yield {}
        return
    async with AsyncExitStack() as held:
        if step.resources.gpu == "all":
            mine = list(range(count))
            await _hold(held, mine, timeout_seconds=None)
        else:
            mine = [await _first_free(held, count)]
        yield {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}


async def _first_free(held: AsyncExitStack, count: int) -> int:
    while True:
        for gpu in range(count):
            try:
                await _hold(held, [gpu], _ASK_SECONDS)
            except AcquireConcurrencySlotTimeoutError:
                continue
            return gpu


async def _hold(held: AsyncExitStack, gpus: list[int], timeout_seconds: float | None) -> None:
    names = [f"gpu-{gpu}" for gpu in gpus]
    try:
        await held.enter_async_context(
            concurrency(names, timeout_seconds=timeout_seconds, strict=True, lease_duration=LEASE_SECONDS)
        )
    except ConcurrencySlotAcquisitionError as error:
        raise ConfigError(
            f"{SHARED_GPUS} is set, but the Prefect server lacks a concurrency limit of {', '.join(names)}: run "
            "`make setup-server GPUS=N`"
        ) from error
