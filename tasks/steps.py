"""A step as a Prefect task. It looks in the store first; on a miss it makes the artifact, in a supervised child process
here or in a separate run on a work pool."""

import asyncio
from functools import partial
from typing import Any, cast

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed

from retort.config import RunSettings
from retort.errors import RETRYABLE
from retort.io.scratch import scratch
from retort.recipes.execute import assist, make
from retort.records.base import ArtifactRef
from retort.records.rank import Rank
from retort.steps.base import Step
from retort.store.opening import open_store
from tasks.ahead import end_engine_for
from tasks.child_process import end_waiting, in_child, together
from tasks.gpu_slots import gpus_for
from tasks.progress import progress_of
from tasks.shards import mark_begun
from tasks.work_pools import on_work_pool, work_pool_of


def can_heal(task: object, run: object, state: State[Any]) -> bool:
    """Prefect's `retry_condition_fn`. A retry helps with memory, eviction or an unavailable bucket, not with bad
    data."""
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "result", None)
    return isinstance(error, RETRYABLE)


@task(
    task_run_name="{step.name}",
    cache_policy=NO_CACHE,  # the store is the cache, see below
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=can_heal,
)
async def perform(settings: RunSettings, step: Step) -> ArtifactRef | State[ArtifactRef]:
    """Find the step's artifact (the task run is then shown as `Cached`), or make and publish it.

    The store is the only source of truth, so this works across runs, machines and pods that lost their disk. Prefect's
    own cache would have the run's id in its key and would trust results that may be gone.
    """
    store = open_store(settings.store)
    await asyncio.to_thread(step.refresh, store)
    manifest = await asyncio.to_thread(store.reuse, settings.name, step)
    if manifest is not None:
        await end_engine_for(step)  # another run has made it since this one looked
        found = f"found {step.artifact_kind}/{step.key[:12]}"
        return Completed(name="Cached", message=found, data=store.ref(manifest))
    work_pool = work_pool_of(settings.execution, step)
    ref = await (on_work_pool(settings, step, work_pool) if work_pool else _here(settings, step))
    get_run_logger().info("made %s/%s: %s rows", ref.kind, ref.key[:12], ref.rows)
    return ref


def task_of(step: Step) -> Task[[RunSettings, Step], Any]:
    """`perform`, named after the step's kind so that people find it. It has no tags: for each, Prefect would ask its
    server for a limit before the task starts, which takes two seconds."""
    return perform.with_options(name=step.kind, description=type(step).__doc__)


async def _here(settings: RunSettings, step: Step) -> ArtifactRef:
    context = TaskRunContext.get()
    attempt = context.task_run.run_count - 1 if context else 0
    async with gpus_for(step, settings.execution) as place, progress_of(step) as on_progress:
        if step.resources.gpu == "all":
            await end_waiting(place)  # an engine needs all memory of its GPUs
        mark_begun(step)
        places = place.each() if step.resources.gpu == "several" and place.locks else [place]
        with scratch("rendezvous") as folder:
            ranks = [Rank(at, len(places), str(folder / "file"), place.gpus) for at in range(len(places))]
            made, *_ = await together(
                in_child(
                    partial(make if rank.is_first else assist, rank=rank),
                    settings,
                    step,
                    max(0, attempt),
                    place=own,
                    timeout_seconds=settings.execution.stage_timeout_seconds,
                    **({"on_progress": on_progress} if rank.is_first else {}),
                )
                for rank, own in zip(ranks, places, strict=True)
            )
        return cast(ArtifactRef, made)  # the others make nothing
