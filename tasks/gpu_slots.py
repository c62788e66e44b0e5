"""Which GPU a step gets, where a machine has several.

A machine whose workers share GPUs sets RETORT_GPUS to their number: each GPU is then a Prefect concurrency limit of one
slot, `gpu-0`, `gpu-1`, ... (`make setup-server GPUS=2` creates them), and a step holds one, or a teacher all, while
its child process runs. In a container or a pod that has its own GPUs nothing is to be shared, and nothing is asked for.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError, concurrency

from retort.errors import ConfigError
from retort.steps.base import Step

SHARED_GPUS = "RETORT_GPUS"
LEASE_SECONDS = 60
"""A slot comes back this long after its holder was killed."""
_ASK_SECONDS = 1.0


@asynccontextmanager
async def gpus_for(step: Step) -> AsyncIterator[Mapping[str, str]]:
    """Waits for its turn; gives the environment in which the child sees its GPUs alone.

    Raises ConfigError where the limits do not exist: running unlimited would put two students on one GPU.
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
