"""Multistage collaborative knowledge distillation as a Prefect flow.

    data      = ingest(config)                            labelled set, pool, test rows
    distilled = distil(config, data)                      teacher's labels, then for each stage: train k students on
                                                          disjoint partitions, let each label what it has not seen,
                                                          keep the new labels if they prove better; the final student
    distilled = compare_baselines(config, distilled)      what the config asks for
    distilled = challenge(config, distilled)              the final student against the reigning one
    report, MLflow, artifacts on this run's page

The algorithm itself is `retort/recipes/mckd/pipeline.py`; here each of its stages becomes a task of this run, made in
this process or as a run of its own on a work pool.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from pydantic import Field

from retort.commands.plan import stages_of
from retort.config import ExecutionConfig, MckdConfig
from retort.config.loading import load_config
from retort.config.soft_label import Job
from retort.recipes.execute import open_store
from retort.recipes.mckd.baselines import compare_baselines
from retort.recipes.mckd.challenge import challenge
from retort.recipes.mckd.checks import check
from retort.recipes.mckd.pipeline import Do, distil, ingest_data
from retort.recipes.scope import Scope, again, check_scope, make_only
from retort.records.base import ArtifactRef, Performed, Record, Step
from retort.report.mckd.summary import Summary
from retort.report.step import report
from retort.store.runs import RunRecord, keep_run
from retort.tracking.champion import reigning_student
from retort.tracking.commit import git_commit
from retort.tracking.step import track
from tasks.artifacts import show_report
from tasks.steps import TASKS
from tasks.work_pools import check_pools, pool_of

CHECKED: ContextVar[MckdConfig | None] = ContextVar("CHECKED", default=None)
"""Set by whoever has loaded and checked the config before Prefect was started."""


class Finished(Record):
    """What a run returns."""

    run_id: str
    stages: tuple[Performed, ...]
    summary: Summary | None = None
    """None of a run of some stages only."""


def run_name() -> str:
    return PurePosixPath(str(flow_run.parameters["config"])).stem


@flow(name="mckd", flow_run_name=run_name, persist_result=False)
async def mckd(
    config: Annotated[str, Field(min_length=1)],
    # 0 and not None, since of a union the form in the UI only says that a value is wrong, not what is allowed.
    stages: Annotated[int, Field(ge=0, le=20)] = 0,
    partitions: Annotated[int, Field(ge=0, le=64)] = 0,
    limit: Annotated[int, Field(ge=0)] = 0,
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    only: list[str] = [],  # noqa: B006
    from_stage: str = "",
    force: list[str] = [],  # noqa: B006
) -> Finished:
    """Distil the teacher into a final student.

    Args:
        config: The YAML file: a path below the project's folder, or s3://bucket/key.
        stages: Instead of method.stages in the file; 1 is vanilla distillation, 0 leaves it as it is there.
        partitions: Instead of method.partitions in the file: students trained side by side; 0 leaves it as it is there.
        limit: Use only this many rows of the pool, to try things out; 0 uses all that the file says.
        overrides: Any other field, each as FIELD=VALUE, such as student.training.epochs=3.
        only: Make only these stages, such as stage1/student-0; what they need must be in the store.
        from_stage: Everything before this stage must be in the store already, or the run stops at once.
        force: Make these stages again, with all that rests on them, though they are in the store.
    """
    flat = {"method.stages": stages, "method.partitions": partitions, "data.limit": limit}
    fields = [*overrides, *(f"{name}={value}" for name, value in flat.items() if value)]
    scope = Scope(only=tuple(only), from_stage=from_stage or None, force=tuple(force))
    settings = CHECKED.get()
    if settings is None:
        settings = await asyncio.to_thread(checked, config, fields)
    return await carry_out(settings, scope)


def checked(address: str, overrides: list[str]) -> MckdConfig:
    """Raises ConfigError, DataError or StoreUnavailable for whatever is wrong and cheap to see."""
    return check(load_config(address, overrides))


async def carry_out(config: MckdConfig, scope: Scope) -> Finished:
    """Do what the scope says of the run, and show it on this run's page, in MLflow and in the store."""
    await check_pools(config.execution)
    store, started = open_store(config.store), now()
    performed: list[Performed] = []
    do = again(scope, store, first_started() or started, doing(config, performed))
    reigning = await asyncio.to_thread(reigning_student, config, store)
    if scope != Scope():
        stages = await stages_of(config, store, reigning)
        await asyncio.to_thread(check_scope, scope, stages, store)
        if scope.only:
            await make_only(scope, stages, store, do)
            return Finished(run_id=run_id(), stages=tuple(performed))

    data = await ingest_data(config, do)
    distilled = await distil(config, data, do, reigning)
    distilled = await compare_baselines(config, distilled, do)
    distilled = await challenge(config, distilled, reigning, do)

    page = await do(report(config, distilled))
    if config.tracking:
        await do(track(config, config.tracking, distilled, page, origin()))
    await asyncio.to_thread(keep_run, store, record(config, started, [*distilled.refs(), page]))
    return Finished(run_id=run_id(), stages=tuple(performed), summary=await show_report(config, page))


def doing(config: Job, performed: list[Performed]) -> Do:
    """Each stage as a task of this run, as many side by side as the machine has places. A stage on a work pool takes
    none of them: how many run at once there is the pool's and its workers' affair.
    """
    places = asyncio.Semaphore(num_places(config.execution))

    async def do(stage: Step) -> ArtifactRef:
        async with contextlib.nullcontext() if pool_of(config.execution, stage) else places:
            started = time.monotonic()
            state: State[ArtifactRef] = await TASKS[stage.verb](config, stage, return_state=True)  # type: ignore[misc]
            seconds = time.monotonic() - started
        ref: ArtifactRef = await state.aresult()
        scores = ref.metrics if stage.verb == "evaluate" else {}
        status = "HIT" if state.name == "Cached" else "MADE"
        performed.append(Performed(name=stage.name, status=status, seconds=seconds, scores=scores))
        return ref

    return do


def num_places(execution: ExecutionConfig) -> int:
    if execution.parallel_students:
        return execution.parallel_students
    has_gpu = execution.device != "cpu" and any(Path("/dev").glob("nvidia[0-9]*"))
    return 1 if has_gpu else os.cpu_count() or 1


def record(config: Job, started: str, refs: Iterable[ArtifactRef]) -> RunRecord:
    """For whoever cleans up: what this run rests on."""
    return RunRecord(
        name=config.name,
        run_id=run_id(),
        started_at=started,
        ended_at=now(),
        artifacts=tuple(f"{ref.kind}/{ref.key}" for ref in refs),
    )


def run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def first_started() -> str | None:
    """When this run, at its first attempt, began."""
    context = FlowRunContext.get()
    start = context.flow_run.start_time if context and context.flow_run else None
    return None if start is None else datetime.fromtimestamp(start.timestamp(), UTC).isoformat(timespec="milliseconds")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def origin() -> dict[str, str]:
    """Where the run comes from, told to MLflow."""
    url = url_for("flow-run", obj_id=run_id()) if run_id() else None
    told = {"prefect.flow_run_id": run_id(), "prefect.url": url or "", "git.commit": git_commit()}
    return {name: value for name, value in told.items() if value}
