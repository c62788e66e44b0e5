"""A stage on a work pool: a flow run of its own, which can be seen, retried and cancelled by itself.

The parent writes a work order into the store and starts the deployment of the stage's verb on the pool that the config
names. The child makes the artifact; the store is how the parent learns of it. So a child that was retried from its own
page is simply found when its parent is retried.
"""

import asyncio
import json
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.utilities.urls import url_for

from retort.config import ExecutionConfig, StoreConfig
from retort.config.soft_label import Job
from retort.errors import ConfigError, DamagedArtifact, StageFailed
from retort.recipes.execute import open_store
from retort.records.base import ArtifactRef, Record, Step, Verb, digest

STUDENT_VERBS: tuple[Verb, ...] = ("train-student", "cross-label", "evaluate")
GPU_TEACHERS = ("vllm", "transformers")
POLL_SECONDS = 1.0


class WorkOrder(Record):
    """All that a worker needs to make a stage, beside the store."""

    config: Job
    stage: Step


def needs_gpu(stage: Step) -> bool:
    """Whether a GPU makes it faster: it asks a model of our own, or trains or asks a student."""
    if stage.verb == "pseudolabel":
        return stage.knobs.get("config", {}).get("kind") in GPU_TEACHERS
    return stage.verb in STUDENT_VERBS and (stage.verb != "evaluate" or "student" in stage.inputs)


def pool_of(execution: ExecutionConfig, stage: Step) -> str | None:
    """The work pool on which the config wants this stage; None is here."""
    if not needs_gpu(stage):
        return None
    return execution.teacher_pool if stage.verb == "pseudolabel" else execution.student_pool


async def check_pools(execution: ExecutionConfig) -> None:
    """Raises ConfigError unless every pool that the config names has the deployments that will be started on it."""
    wanted: list[tuple[str | None, tuple[Verb, ...]]] = [
        (execution.teacher_pool, ("pseudolabel",)),
        (execution.student_pool, STUDENT_VERBS),
    ]
    needed = [(pool, verb) for pool, verbs in wanted if pool for verb in verbs]
    if not needed:
        return
    async with get_client() as client:
        for pool, verb in needed:
            await deployment_on(client, pool, verb)


async def deployment_on(client: PrefectClient, pool: str, verb: Verb) -> DeploymentResponse:
    """The deployment of the flow named like the verb. Raises ConfigError if there is none on the pool."""
    found = await client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[verb])),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    if not found:
        raise ConfigError(
            f"execution: work pool '{pool}' has no deployment of '{verb}'; name a pool of prefect.yaml, and deploy "
            "with `prefect deploy --all`"
        )
    return found[0]


async def on_pool(config: Job, stage: Step, pool: str) -> ArtifactRef:
    """Start the stage's run, or join the one that is under way for anybody, and wait for its end.

    Raises StageFailed if that run does not complete: what is wrong stands on its own page, where it can be retried.
    """
    store = open_store(config.store)
    async with get_client() as client:
        child = await _under_way(client, stage) or await _start(client, config, stage, pool)
        while not (child.state and child.state.is_final()):
            await asyncio.sleep(POLL_SECONDS)
            child = await client.read_flow_run(child.id)
    manifest = await asyncio.to_thread(store.find, stage.kind, stage.key)
    if not child.state.is_completed():
        told = (child.state.message or "").strip().partition("\n")[0]
        raise StageFailed(
            f"{stage.name}: its run on work pool '{pool}' ended as {child.state.name} ({told}). Retry that run from "
            f"its own page, then this one: {url_for(child) or child.id}"
        )
    if manifest is None:
        raise DamagedArtifact(
            f"{stage.name}: its run {child.id} completed, but {store.root} does not hold its artifact"
        )
    return store.ref(manifest)


async def _runs_of(client: PrefectClient, stage: Step) -> list[FlowRun]:
    """Every run that ever was to make this stage, newest first."""
    tags = FlowRunFilterTags(all_=[_tag(stage)])
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=tags), sort=FlowRunSort.EXPECTED_START_TIME_DESC
    )


async def _under_way(client: PrefectClient, stage: Step) -> FlowRun | None:
    """One that this parent started before it was killed, that a person retried, or that another parent waits for."""
    return next((run for run in await _runs_of(client, stage) if run.state and not run.state.is_final()), None)


async def _start(client: PrefectClient, config: Job, stage: Step, pool: str) -> FlowRun:
    deployment = await deployment_on(client, pool, stage.verb)
    parameters: dict[str, Any] = {
        "stage": stage.name,
        "order": await asyncio.to_thread(write_order, config, stage),
        "store": config.store.model_dump(mode="json"),
    }
    # Two parents that ask at the same moment get the same run.
    earlier = len(await _runs_of(client, stage))
    return await arun_deployment(
        deployment.id,
        client=client,
        parameters=parameters,
        flow_run_name=stage.name,
        tags=[_tag(stage), config.name],
        idempotency_key=f"{stage.key}:{earlier}",
        timeout=0,
    )


def _tag(stage: Step) -> str:
    return f"stage:{stage.key[:16]}"


def write_order(config: Job, stage: Step) -> str:
    """Keep the order in the store; returns its digest. No secret: `${VAR}` is expanded where it is used."""
    here = config.execution.model_copy(update={"teacher_pool": None, "student_pool": None})
    order = WorkOrder(config=config.model_copy(update={"execution": here}), stage=stage)
    content = order.model_dump(mode="json")
    name = digest(content)
    open_store(config.store).place.write(_path(name), json.dumps(content, ensure_ascii=False).encode())
    return name


def read_order(store: StoreConfig, name: str) -> WorkOrder:
    """Raises ConfigError where the store has no such order, or it is not what its name says."""
    opened = open_store(store)
    try:
        order = WorkOrder.model_validate_json(opened.place.read(_path(name)))
    except FileNotFoundError:
        raise ConfigError(
            f"order = '{name}': {opened.root} holds no such order (any more); retry the parent run"
        ) from None
    if digest(order.model_dump(mode="json")) != name:
        raise ConfigError(f"order = '{name}': the order in {opened.root} is not the one that was written")
    return order


def _path(name: str) -> str:
    return f"orders/{name}.json"
