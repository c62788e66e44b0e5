"""A whole MCKD run with real steps and real tiny models in this process, without Prefect and MLflow."""

import asyncio
from typing import Any, NamedTuple

from retort.artifacts.reports import Report
from retort.config import MckdConfig
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.checks import check
from retort.recipes.mckd.recipe import MckdRecipe
from retort.records.base import ArtifactRef
from retort.records.mckd import MckdResult
from retort.report.mckd.summary import MckdSummary
from retort.steps.base import Step
from retort.store import Store
from retort.store.opening import open_store


class WholeRun(NamedTuple):
    config: MckdConfig
    store: Store
    result: MckdResult
    summary: MckdSummary
    page: str
    """The report in Markdown."""


def whole_run(values: dict[str, Any]) -> WholeRun:
    """With its checks, its gate and its report."""
    config, recipe = check(MckdConfig.model_validate(values)), MckdRecipe()

    async def do(step: Step) -> ArtifactRef:
        return made_or_found(config, step)

    async def run() -> MckdResult:
        result = await recipe.distill(config, do, None)
        return result.model_copy(update={"verdict": await do(recipe.gate(config, result))})

    result, store = asyncio.run(run()), open_store(config.store)
    report = Report.open(store, made_or_found(config, recipe.report(config, result)))
    return WholeRun(config, store, result, report.summary(MckdSummary), report.markdown)
