"""What every task does: look into the store, and only on a miss make the artifact, in a supervised child process here
or in a run of its own on a work pool."""

import asyncio
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed

from retort.config.soft_label import Job
from retort.errors import RETRYABLE
from retort.recipes.execute import make, open_store
from retort.records.base import ArtifactRef, Step
from tasks.child_process import in_child
from tasks.gpu_slots import gpus_for
from tasks.progress import progress_of
from tasks.work_pools import on_pool, pool_of

RETRIES: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10]}
"""For what can heal: memory, eviction, a bucket that was away. Bad data would only burn the time again."""


def can_heal(task: object, run: object, state: State[Any]) -> bool:
    """Prefect's `retry_condition_fn`."""
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "result", None)
    return isinstance(error, RETRYABLE)


async def perform(config: Job, stage: Step) -> ArtifactRef | State[ArtifactRef]:
    """The stage's artifact: found (the run then shows as `Cached`), or made in a child process and published.

    The store is the truth, so this holds across runs, machines and pods whose disk is gone. Prefect's own cache
    would hold the run's id in its key and trust results that may have vanished.
    """
    store = open_store(config.store)
    manifest = await asyncio.to_thread(store.reuse, config.name, stage)
    if manifest is not None:
        return Completed(name="Cached", message=f"found {stage.kind}/{stage.key[:12]}", data=store.ref(manifest))
    pool = pool_of(config.execution, stage)
    ref = await (on_pool(config, stage, pool) if pool else _here(config, stage))
    get_run_logger().info("%s: %s rows at %s", stage.name, ref.rows, ref.uri)
    return ref


async def _here(config: Job, stage: Step) -> ArtifactRef:
    context = TaskRunContext.get()
    attempt = context.task_run.run_count - 1 if context else 0
    async with gpus_for(stage) as environment, progress_of(stage) as on_progress:
        return await in_child(
            make,
            config,
            stage,
            max(0, attempt),
            environment=environment,
            timeout_seconds=config.execution.stage_timeout_seconds,
            on_progress=on_progress,
        )
