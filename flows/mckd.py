"""Multistage collaborative knowledge distillation as a Prefect flow.

    data      = ingest(config)                            labelled set, pool, test rows
    distilled = distil(config, data)                      teacher's labels, then for each stage: train k students on
                                                          disjoint partitions, let each label what it has not seen,
                                                          keep the new labels if they prove better; the final student
    distilled = compare_baselines(config, distilled)      what the config asks for
    report, MLflow, artifacts on this run's page

The algorithm itself is `retort/algorithms/mckd.py`; here each of its stages becomes a task of this run.
"""

import asyncio
import os
import time
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.utilities.urls import url_for

from retort.algorithms.baselines import compare_baselines
from retort.algorithms.mckd import Do, distil, ingest_data
from retort.config import Config, ExecutionConfig
from retort.preflight import resolve
from retort.records import ArtifactRef, Performed, Record, Stage
from retort.report.summary import Summary
from retort.stages.report import report
from retort.stages.tracking import track
from retort.version import git_commit
from tasks.show import show_report
from tasks.stages import TASKS


class Finished(Record):
    """What a run returns."""

    run_id: str
    stages: tuple[Performed, ...]
    report: ArtifactRef
    summary: Summary


@flow(name="mckd", flow_run_name="{config.name}", persist_result=False)
async def mckd(config: Config) -> Finished:
    """Distil the teacher into a final student, in as many stages as the config says."""
    config = await asyncio.to_thread(resolve, config)
    performed: list[Performed] = []
    do = inline(config, performed)

    data = await ingest_data(config, do)
    distilled = await distil(config, data, do)
    distilled = await compare_baselines(config, distilled, do)

    page = await do(report(config, distilled))
    if config.tracking:
        await do(track(config, config.tracking, distilled, page, origin()))
    return Finished(
        run_id=run_id(),
        stages=tuple(performed),
        report=page,
        summary=await show_report(config, page),
    )


def inline(config: Config, performed: list[Performed]) -> Do:
    """Each stage as a task of this run, as many side by side as the machine has places."""
    places = asyncio.Semaphore(num_places(config.execution))

    async def do(stage: Stage) -> ArtifactRef:
        async with places:
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


def run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def origin() -> dict[str, str]:
    """Where the run comes from, told to MLflow."""
    url = url_for("flow-run", obj_id=run_id()) if run_id() else None
    told = {"prefect.flow_run_id": run_id(), "prefect.url": url or "", "git.commit": git_commit()}
    return {name: value for name, value in told.items() if value}
