"""A single step as a flow on a work pool. A parent run starts it, and it can be retried from its own page.

The parent's work order describes the step. The task that makes it is the same as in an inline run.
"""

import asyncio
from typing import Annotated

from prefect import flow
from pydantic import Field

from retort.config import StoreConfig
from retort.errors import ConfigError
from retort.recipes.execute import sweep_leftovers  # and, with its package, every step that a recipe has
from retort.records.base import ArtifactRef
from tasks.child_process import end_waiting, warm_up
from tasks.steps import task_of
from tasks.work_pools import read_order


@flow(name="step", flow_run_name="{name}", persist_result=False)
async def step(name: Annotated[str, Field(min_length=1)], order: str, store: StoreConfig) -> ArtifactRef:
    """Make one step of a run, or find it in the store. Started by the run that it belongs to.

    Args:
        name: The step's name, for people.
        order: Digest of the order that the parent run wrote into the store.
        store: Where the order lies, and where the artifact goes.
    """
    warm_up()  # imports torch in the server process while the order is read here
    ordered = await asyncio.to_thread(read_order, store, order)
    await asyncio.to_thread(sweep_leftovers, ordered.settings)

    try:
        wanted = ordered.read_step()
    except (KeyError, ValueError):
        raise ConfigError(
            f"order = '{order}': this worker does not know the step '{ordered.step_class}' of {name}, or knows another "
            "version of it: give all workers the version of Retort that the parent run has"
        ) from None
    try:
        ref: ArtifactRef = await task_of(wanted)(ordered.settings, wanted)
        return ref
    finally:
        await end_waiting()
