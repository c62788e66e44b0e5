"""One run of any recipe: its steps as tasks, then report, tracking and run record.

    result = recipe.run(config, do, champion)      the recipe's steps, each made or found by `do`
    page   = recipe.report(config, result)
    recipe.track(config, result, page)             MLflow

The report is shown as artifacts on this run's page.
"""

import asyncio
import contextlib
import heapq
import itertools
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from pydantic import Field, SerializeAsAny

from retort.config import ExecutionConfig, RecipeConfig, RunSettings
from retort.errors import ConfigError
from retort.recipes import load_config, recipe_of
from retort.recipes.base import Do
from retort.recipes.execute import sweep_leftovers
from retort.recipes.scope import Scope, again, check_scope, make_only
from retort.recipes.sharding import in_shards
from retort.recipes.walk import steps_of, whole_run
from retort.records.base import ArtifactRef, Performed, Record
from retort.report.base import Summary
from retort.steps.base import Step
from retort.steps.split_rows import Shard, is_part
from retort.store.opening import open_store
from retort.store.runs import RunRecord, keep_run
from retort.tracking.champion import reigning_student
from retort.tracking.commit import git_commit
from tasks.artifacts import show_report
from tasks.child_process import end_waiting
from tasks.gpu_slots import num_places, num_wanted
from tasks.shards import do_shards
from tasks.steps import task_of
from tasks.work_pools import check_work_pools, work_pool_of

CHECKED: ContextVar[RecipeConfig | None] = ContextVar("CHECKED", default=None)
"""A config that was already loaded and checked, before Prefect was started."""


class Finished(Record):
    """The result of a run."""

    run_id: str
    stages: tuple[Performed, ...]
    summary: SerializeAsAny[Summary] | None = None
    """None if only some steps were run."""


def run_name() -> str:
    """The config's name if it is overridden, else that of its file, which may not be there yet."""
    overrides = [str(field).partition("=") for field in flow_run.parameters.get("overrides", ())]
    names = [value.strip() for field, _, value in overrides if field.strip() == "name" and value.strip()]
    return names[-1] if names else PurePosixPath(str(flow_run.parameters["config"])).stem


@flow(name="run", flow_run_name=run_name, persist_result=False)
async def run(
    config: Annotated[str, Field(min_length=1)],
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    only: list[str] = [],  # noqa: B006
    from_stage: str = "",
    force: list[str] = [],  # noqa: B006
) -> Finished:
    """Run the config of a recipe that has no flow, and so no form, of its own.

    Args:
        config: The YAML file: a path below the project's folder, or s3://bucket/key.
        overrides: Fields to change in it, each as FIELD=VALUE.
        only: Make only these stages; what they need must be in the store.
        from_stage: Everything before this stage must be in the store already, or the run stops at once.
        force: Make these stages again, with all that rests on them, though they are in the store.
    """
    scope = Scope(only=tuple(only), from_stage=from_stage or None, force=tuple(force))
    return await run_config(config, overrides, None, scope)


async def run_config(address: str, overrides: list[str], kind: str | None, scope: Scope) -> Finished:
    """Load, check and run a config. `kind` is the flow's recipe; None means any.

    Raises ConfigError, DataError or StoreUnavailable if a check fails.
    """
    config = CHECKED.get()
    if config is None:
        config = await asyncio.to_thread(load_and_check, address, overrides, kind)
    return await run_steps(config, scope)


def load_and_check(address: str, overrides: list[str], kind: str | None) -> RecipeConfig:
    config = load_config(address, overrides)
    recipe = recipe_of(config)
    if kind not in (None, recipe.kind):
        raise ConfigError(f"{address}: kind = '{recipe.kind}' is for another flow; this is the flow '{kind}'")
    resolved: RecipeConfig = recipe.check(config)
    return resolved


async def run_steps(config: RecipeConfig, scope: Scope) -> Finished:
    """Run the part of the config that `scope` selects. Record a whole run on this run's page, in MLflow and in the
    store."""
    try:
        return await _run_steps(config, scope)
    finally:
        await end_waiting()


async def _run_steps(config: RecipeConfig, scope: Scope) -> Finished:
    await check_work_pools(config.execution)
    await asyncio.to_thread(sweep_leftovers, config)
    recipe, store, started = recipe_of(config), open_store(config.store), now()
    performed: list[Performed] = []
    # `do` as it is in the end: what is made again is made again in shards too.
    made = task_runner(config, performed, lambda part: do(part))
    do: Do = made
    champion = await asyncio.to_thread(reigning_student, config, store)
    if scope != Scope():
        steps = await steps_of(recipe, config, store, champion)
        await asyncio.to_thread(check_scope, scope, steps, store)
        do = again(scope, steps, store, first_started() or started, made)
        if scope.only:
            await make_only(scope, steps, store, do)
            return Finished(run_id=run_id(), stages=tuple(performed))

    result, page = await whole_run(recipe, config, do, champion, origin(first_started() or started))
    await asyncio.to_thread(keep_run, store, record(config, started, [*result.refs(), page]))
    summary = await show_report(config, page, recipe.summary)
    return Finished(run_id=run_id(), stages=tuple(performed), summary=summary)


def task_runner(config: RecipeConfig, performed: list[Performed], part: Do) -> Do:
    """A `do` that runs each step as a task of this run, and appends it to `performed`. A step that the config wants in
    shards is split first; `part` does the split and the shards.

    At most as many steps run at once as `Places` has room for. Steps on a work pool take no place; the pool and its
    workers limit those. Steps of one key run one after the other, so that all but the first find its artifact.
    """
    settings, places = config.run_settings, Places(config.execution)
    store, shards_begun = open_store(config.store), dict[str, float]()
    turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def as_task(step: Step) -> ArtifactRef:
        is_here = work_pool_of(config.execution, step) is None
        async with turns[step.key], places.place_for(step) if is_here else contextlib.nullcontext():
            started = time.monotonic()
            state: State[ArtifactRef] = await task_of(step)(settings, step, return_state=True)  # type: ignore[misc]
            seconds = time.monotonic() - shards_begun.pop(step.key, started)
        ref: ArtifactRef = await state.aresult()
        scores = ref.metrics if step.artifact_kind == "scores" else {}
        status: Any = "HIT" if state.name == "Cached" else "MADE"
        if not is_part(step):
            performed.append(Performed(name=step.name, status=status, seconds=seconds, scores=scores))
        return ref

    async def parts(step: Step, shards: Sequence[Shard]) -> tuple[ArtifactRef, ...]:
        shards_begun[step.key] = time.monotonic()
        return await do_shards(step.name, shards, part)

    async def do(step: Step) -> ArtifactRef:
        return await in_shards(config.execution, store, step, as_task, part, parts)

    return do


class Places:
    """How many steps run at once on this machine.

    With GPUs: as many that need them as `num_places` has room for, beside one for each core that need none. Without: a
    student takes the share of the cores that its threads use, or one of `parallel_students` places, and any other step
    a core. Urgent steps go first.
    """

    def __init__(self, execution: ExecutionConfig) -> None:
        self._execution, self._cores = execution, os.cpu_count() or 1
        self._gpus = num_places(execution)
        self._cpu = _Room(self._cores if self._gpus else execution.parallel_students or self._cores)
        self._gpu = _Room(self._gpus)
        self._students_share_cores = not self._gpus and not execution.parallel_students

    @contextlib.asynccontextmanager
    async def place_for(self, step: Step) -> AsyncIterator[None]:
        is_student = step.resources.gpu in ("one", "several")
        if self._gpus and step.resources.gpu != "none":
            room, count = self._gpu, min(num_wanted(step, self._execution), self._gpus)
        elif is_student and self._students_share_cores:
            room, count = self._cpu, max(1, self._cores // step.cpu_shares)
        else:
            room, count = self._cpu, 1
        async with room.taken(count, urgent=step.is_urgent):
            yield


class _Room:
    """Places, of which a step may take several."""

    def __init__(self, places: int) -> None:
        self._free, self._numbers = places, itertools.count()
        self._waiting: list[tuple[bool, int, int, asyncio.Future[None]]] = []
        """(not urgent, number, places wanted, set once they are taken): a heap. Whoever is first waits until all its
        places are free, so that steps that want one do not keep it waiting."""

    @contextlib.asynccontextmanager
    async def taken(self, count: int, *, urgent: bool = True) -> AsyncIterator[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not urgent, next(self._numbers), count, turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():  # else it was canceled while it waited
                self._free += count
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            _, _, count, turn = self._waiting[0]
            if not turn.cancelled():
                if count > self._free:
                    return
                self._free -= count
                turn.set_result(None)
            heapq.heappop(self._waiting)


def record(settings: RunSettings, started: str, refs: Iterable[ArtifactRef]) -> RunRecord:
    """The artifacts that this run needs, for `retort maintain`."""
    return RunRecord(
        name=settings.name,
        run_id=run_id(),
        started_at=started,
        ended_at=now(),
        artifacts=tuple(f"{ref.kind}/{ref.key}" for ref in refs),
    )


def run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def first_started() -> str | None:
    """When the first attempt of this run started."""
    context = FlowRunContext.get()
    start = context.flow_run.start_time if context and context.flow_run else None
    return None if start is None else datetime.fromtimestamp(start.timestamp(), UTC).isoformat(timespec="milliseconds")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def origin(started: str) -> dict[str, str]:
    """Where the run comes from, see `Track.origin`."""
    url = url_for("flow-run", obj_id=run_id()) if run_id() else None
    known = {
        "started_at": started,
        "prefect.flow_run_id": run_id(),
        "prefect.url": url or "",
        "git.commit": git_commit(),
    }
    return {name: value for name, value in known.items() if value}
