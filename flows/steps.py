"""The stages that can run on a work pool, each a flow of its own: started by a parent run, retried from its own page.

They differ in nothing but their names: what is to be made stands in the parent's order, and the task that makes it is
the one that an inline run would call.
"""

import asyncio

from prefect import Flow

from retort.config import StoreConfig
from retort.records.base import ArtifactRef
from tasks.child_process import warm_up
from tasks.steps import TASKS
from tasks.work_pools import read_order


async def carry_out(stage: str, order: str, store: StoreConfig) -> ArtifactRef:
    """Make one stage of a run, or find it in the store. Started by the run that it belongs to.

    Args:
        stage: The stage's name, for people.
        order: Digest of the order that the parent run wrote into the store.
        store: Where the order lies, and where the artifact goes.
    """
    warm_up()  # torch is imported there while the order is read here
    ordered = await asyncio.to_thread(read_order, store, order)
    ref: ArtifactRef = await TASKS[ordered.stage.verb](ordered.config, ordered.stage)
    return ref


pseudolabel = Flow(carry_out, name="pseudolabel", flow_run_name="{stage}", persist_result=False)
train_student = Flow(carry_out, name="train-student", flow_run_name="{stage}", persist_result=False)
cross_label = Flow(carry_out, name="cross-label", flow_run_name="{stage}", persist_result=False)
evaluate = Flow(carry_out, name="evaluate", flow_run_name="{stage}", persist_result=False)
