"""Soft-label distillation of a classifier into a tiny student as a Prefect flow.

    scored = distil_scores(config)      the teacher's probabilities, out of fold; every arm on the same rows, from the
                                        same seeds; what is best on the dev rows meets each test set once
    report, MLflow, artifacts on this run's page

The algorithm itself is `retort/recipes/soft_label/pipeline.py`; here each of its stages becomes a task of this run.
"""

import asyncio
from contextvars import ContextVar
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.mckd import doing, first_started, now, origin, record, run_id, run_name
from retort.commands.plan import stages_of
from retort.config.loading import load_score_config
from retort.config.soft_label import SoftLabelConfig
from retort.recipes.execute import open_store
from retort.recipes.scope import Scope, again, check_scope, make_only
from retort.recipes.soft_label.checks import check_scores
from retort.recipes.soft_label.pipeline import distil_scores
from retort.records.base import Performed, Record
from retort.report.soft_label.step import report_scores
from retort.report.soft_label.summary import ScoreSummary
from retort.store.runs import keep_run
from retort.tracking.soft_label_step import track_scores
from tasks.artifacts import show_score_report
from tasks.work_pools import check_pools

CHECKED: ContextVar[SoftLabelConfig | None] = ContextVar("CHECKED", default=None)
"""Set by whoever has loaded and checked the config before Prefect was started."""


class FinishedScores(Record):
    """What a run returns."""

    run_id: str
    stages: tuple[Performed, ...]
    summary: ScoreSummary | None = None
    """None of a run of some stages only."""


@flow(name="score", flow_run_name=run_name, persist_result=False)
async def score(
    config: Annotated[str, Field(min_length=1)],
    limit: Annotated[int, Field(ge=0)] = 0,
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    only: list[str] = [],  # noqa: B006
    from_stage: str = "",
    force: list[str] = [],  # noqa: B006
) -> FinishedScores:
    """Distil the teacher's probabilities into a tiny student, beside everything that it is compared with.

    Args:
        config: The YAML file (kind: score): a path below the project's folder, or s3://bucket/key.
        limit: Use only this many training rows, to try things out; 0 uses all that the file says.
        overrides: Any other field, each as FIELD=VALUE, such as grid.seeds=10.
        only: Make only these stages, such as hard/students; what they need must be in the store.
        from_stage: Everything before this stage must be in the store already, or the run stops at once.
        force: Make these stages again, with all that rests on them, though they are in the store.
    """
    fields = [*overrides, *([f"data.limit={limit}"] if limit else [])]
    scope = Scope(only=tuple(only), from_stage=from_stage or None, force=tuple(force))
    settings = CHECKED.get()
    if settings is None:
        settings = await asyncio.to_thread(checked_scores, config, fields)
    return await carry_out_scores(settings, scope)


def checked_scores(address: str, overrides: list[str]) -> SoftLabelConfig:
    """Raises ConfigError, DataError or StoreUnavailable for whatever is wrong and cheap to see."""
    return check_scores(load_score_config(address, overrides))


async def carry_out_scores(config: SoftLabelConfig, scope: Scope) -> FinishedScores:
    """Do what the scope says of the run, and show it on this run's page, in MLflow and in the store."""
    await check_pools(config.execution)
    store, started = open_store(config.store), now()
    performed: list[Performed] = []
    do = again(scope, store, first_started() or started, doing(config, performed))
    if scope != Scope():
        stages = await stages_of(config, store)
        await asyncio.to_thread(check_scope, scope, stages, store)
        if scope.only:
            await make_only(scope, stages, store, do)
            return FinishedScores(run_id=run_id(), stages=tuple(performed))

    scored = await distil_scores(config, do)
    page = await do(report_scores(config, scored))
    if config.tracking:
        await do(track_scores(config, config.tracking, scored, page, origin()))
    await asyncio.to_thread(keep_run, store, record(config, started, [*scored.refs(), page]))
    return FinishedScores(run_id=run_id(), stages=tuple(performed), summary=await show_score_report(config, page))
