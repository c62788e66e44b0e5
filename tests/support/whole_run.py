"""A whole MCKD run with real steps and real tiny models in this process, without Prefect and MLflow."""

import asyncio
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

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


@dataclass(frozen=True)
class WholeRun:
    config: MckdConfig
    store: Store
    result: MckdResult

    @cached_property
    def report(self) -> Report:
        """Made when it is asked for, without pictures: they take as long as the rest of a tiny run."""
        step = MckdRecipe().report(self.config, self.result)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("retort.report.mckd.pictures.draw_all", lambda summary, folder: [])
            return Report.open(self.store, made_or_found(self.config, step))

    @property
    def summary(self) -> MckdSummary:
        return self.report.summary(MckdSummary)

    @property
    def page(self) -> str:
        """The report in Markdown."""
        return self.report.markdown


def whole_run(values: dict[str, Any]) -> WholeRun:
    """With its checks and its gate."""
    config, recipe = check(MckdConfig.model_validate(values)), MckdRecipe()

    async def do(step: Step) -> ArtifactRef:
        return made_or_found(config, step)

    async def run() -> MckdResult:
        result = await recipe.distill(config, do, None)
        return result.model_copy(update={"verdict": await do(recipe.gate(config, result))})

    return WholeRun(config, open_store(config.store), asyncio.run(run()))
