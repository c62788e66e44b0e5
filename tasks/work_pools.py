"""Runs a step on a work pool, as a separate flow run that can be watched, retried and canceled by itself.

The parent writes a work order into the store and starts the deployment of the flow `step` on the work pool in the
config. The child makes the artifact, and the parent reads it from the store. So if a child was retried from its own
page, its parent simply finds the artifact when it is retried.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from retort.config import ExecutionConfig, RunSettings, StoreConfig
from retort.errors import ConfigError, DamagedArtifact, StageFailed
from retort.records.base import ArtifactRef, Record, digest
from retort.steps.base import Step, step_class
from retort.steps.split_rows import Shard
from retort.store.opening import open_store
from retort.store.store import Store, read_again
from tasks.shards import mark_begun

STEP_FLOW = "step"
"""Name of the flow that makes one step, see flows/steps.py."""
POLL_SECONDS = 1.0
"""How often a run is looked at, if there are few."""
POLLS_PER_SECOND = 20
"""How often runs are looked at, however many there are."""
CRASHES = 2
"""How often a shard is begun anew whose worker died. A shard that fails is not: its error would come again."""
_waiting: set[UUID] = set()
"""The runs that are waited for."""


class WorkOrder(Record):
    """Everything that a worker needs to make a step, apart from the store."""

    settings: RunSettings
    step_class: str
    """Name of the step's class."""
    step: dict[str, Any]
    """The step's fields."""
    key: str
    """The step's key. A worker whose code gives it another would make an artifact that the parent run never finds."""

    def read_step(self) -> Step:
        """Raises KeyError or ValueError for a step that this version of the code does not know, or knows otherwise."""
        step = step_class(self.step_class).model_validate(self.step)
        if step.key != self.key:
            raise ValueError(f"{self.step_class} has another version here")
        return step


def work_pool_of(execution: ExecutionConfig, step: Step) -> str | None:
    """The work pool that the config assigns to this step; None means this process."""
    match step.resources.work_pool:
        case "teacher":
            return execution.teacher_pool
        case "student":
            return execution.student_pool
    return None


async def check_work_pools(execution: ExecutionConfig) -> None:
    """Raises ConfigError unless every work pool in the config has a deployment of the flow `step`."""
    named = [pool for pool in (execution.teacher_pool, execution.student_pool) if pool]
    if not named:
        return
    async with get_client() as client:
        for pool in named:
            await deployment_on(client, pool)


async def deployment_on(client: PrefectClient, pool: str) -> DeploymentResponse:
    """The deployment of the flow `step`. Raises ConfigError if the work pool has none."""
    found = await client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[STEP_FLOW])),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    if not found:
        raise ConfigError(
            f"execution: work pool '{pool}' has no deployment of '{STEP_FLOW}'; name a pool of prefect.yaml, and "
            "deploy with `prefect deploy --all`"
        )
    return found[0]


async def on_work_pool(settings: RunSettings, step: Step, pool: str) -> ArtifactRef:
    """Start a run of the step, or join one that is already in progress, and wait until it ends. A shard whose worker
    died is begun anew, on another worker.

    Raises StageFailed if that run does not complete. Its own page shows why, and it can be retried there.
    """
    store = open_store(settings.store)
    async with get_client() as client:
        child, state = await _ended(client, settings, step, pool)
        for _ in range(CRASHES if isinstance(step, Shard) else 0):
            if state.is_crashed():
                get_run_logger().warning("%s: its worker died; begun anew", step.name)
                child, state = await _ended(client, settings, step, pool)
    manifest = await asyncio.to_thread(store.find, step.artifact_kind, step.key)
    if not state.is_completed():
        message = (state.message or "").strip().partition("\n")[0]
        raise StageFailed(
            f"{step.name}: its run on work pool '{pool}' ended as {state.name} ({message}). Retry that run from "
            f"its own page, then this one: {url_for(child) or child.id}"
        )
    if manifest is None:
        raise DamagedArtifact(f"{step.name}: its run {child.id} completed, but {store.root} does not hold its artifact")
    return store.ref(manifest)


async def _ended(
    client: PrefectClient, settings: RunSettings, step: Step, pool: str
) -> tuple[FlowRun, State[ArtifactRef]]:
    """The step's run, started here or in progress, once it has ended, and how it ended."""
    runs = await _runs_of(client, settings, step)
    # It may have been started by this parent before it was killed, by another parent, or retried by a person.
    in_progress = next((run for run in runs if run.state and not run.state.is_final()), None)
    child = in_progress or await _start(client, settings, step, pool, runs)
    _waiting.add(child.id)
    is_begun = False
    try:
        while not (child.state and child.state.is_final()):
            if child.state and child.state.is_running() and not is_begun:
                mark_begun(step)
                is_begun = True
            await asyncio.sleep(POLL_SECONDS * max(1.0, len(_waiting) / POLLS_PER_SECOND))
            child = await client.read_flow_run(child.id)
    finally:
        _waiting.discard(child.id)
    return child, child.state


async def _runs_of(client: PrefectClient, settings: RunSettings, step: Step) -> list[FlowRun]:
    """Every run of this step into this store so far, newest first."""
    tags = FlowRunFilterTags(all_=[_tag(settings, step)])
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=tags), sort=FlowRunSort.EXPECTED_START_TIME_DESC
    )


async def _start(client: PrefectClient, settings: RunSettings, step: Step, pool: str, runs: list[FlowRun]) -> FlowRun:
    """`runs` are those so far. Two parents that start the step at the same time know the same, so they get one run."""
    deployment = await deployment_on(client, pool)
    parameters: dict[str, Any] = {
        "name": step.name,
        "order": await asyncio.to_thread(write_order, settings, step),
        "store": settings.store.model_dump(mode="json"),
    }
    return await arun_deployment(
        deployment.id,
        client=client,
        parameters=parameters,
        flow_run_name=step.name,
        tags=[_tag(settings, step), step.kind, settings.name],
        # Not their number, which a run that has ended would answer to again once somebody deletes an older one.
        idempotency_key=digest([_run_key(settings, step), *sorted(str(run.id) for run in runs)]),
        timeout=0,
    )


def _tag(settings: RunSettings, step: Step) -> str:
    return f"step:{_run_key(settings, step)[:16]}"


def _run_key(settings: RunSettings, step: Step) -> str:
    """What the runs of a step have in common. Equal steps of two stores have the same key, but a run makes the artifact
    in one store only."""
    address = settings.store.address
    root = address.rstrip("/") if "://" in address else str(Path(address).absolute())
    return digest([root, settings.store.server, step.key])


def write_order(settings: RunSettings, step: Step) -> str:
    """Write the order into the store and return its digest. It has no secrets: `${VAR}` is expanded only when used."""
    execution = settings.execution.model_copy(update={"teacher_pool": None, "student_pool": None})
    here = RunSettings(name=settings.name, store=settings.store, execution=execution)
    order = WorkOrder(settings=here, step_class=type(step).__name__, step=step.model_dump(mode="json"), key=step.key)
    content = order.model_dump(mode="json")
    name = digest(content)
    open_store(settings.store).place.write(_path(name), json.dumps(content, ensure_ascii=False).encode())
    return name


def read_order(store: StoreConfig, name: str) -> WorkOrder:
    """Raises ConfigError if the store has no such order, or if the order does not match its digest."""
    if not re.fullmatch("[0-9a-f]{64}", name):
        raise ConfigError(f"order = {name[:100]!r}: no digest of an order, which has 64 hex digits")
    opened = open_store(store)
    try:
        content = read_again(lambda: _read_order(opened, name))
    except FileNotFoundError:
        raise ConfigError(
            f"order = '{name}': {opened.root} holds no such order (any more); retry the parent run"
        ) from None
    except DamagedArtifact as error:
        raise ConfigError(str(error)) from None
    try:
        return WorkOrder.model_validate(content)
    except ValidationError:
        raise ConfigError(f"order = '{name}': written by another version of Retort; retry the parent run") from None


def _read_order(store: Store, name: str) -> Any:
    try:
        content = json.loads(store.place.read(_path(name)))
        intact = digest(content) == name
    except ValueError:
        intact = False
    if not intact:
        raise DamagedArtifact(f"order = '{name}': the order in {store.root} is not the one that was written")
    return content


def _path(name: str) -> str:
    return f"orders/{name}.json"
