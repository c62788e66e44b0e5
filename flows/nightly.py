"""The scheduled flow: distill what is new, and promote the final student if it beats the champion.

Nothing is labeled, trained or evaluated twice: the teacher's ledger has the rows that it already labeled, and the store
has the steps whose inputs and settings are unchanged. A night without new data ends in seconds.
"""

import asyncio
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.run import Finished, run_name, run_steps
from retort.artifacts.examples import Examples
from retort.config import RecipeConfig
from retort.data.changes import PoolDiff, compare_rows
from retort.recipes import load_config, recipe_of
from retort.recipes.scope import Scope
from retort.records.base import Record
from retort.store.opening import open_store
from tasks.artifacts import show_night
from tasks.promotion import PromotionResult, promote


class Night(Record):
    """The result of a nightly run."""

    finished: Finished
    changes: dict[str, PoolDiff]
    """Changes since the last run, for each role whose rows the teacher labels."""
    promotion: PromotionResult | None
    """None if the config has no registry or `promote_if_better` is off."""


@flow(name="nightly", flow_run_name=run_name, persist_result=False)
async def nightly(
    config: Annotated[str, Field(min_length=1)],
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    promote_if_better: bool = True,
) -> Night:
    """Distill what is new since the last night; compare with the champion; promote if the gate says so.

    Args:
        config: The YAML file of any recipe: a path below the project's folder, or s3://bucket/key.
        overrides: Fields to change in it, each as FIELD=VALUE, such as student.warm_start=true.
        promote_if_better: Move the alias champion if the gate lets the new student pass. Else only tell.
    """
    settings = await asyncio.to_thread(load_config, config, overrides)
    recipe = recipe_of(settings)
    before = await asyncio.to_thread(latest_rows, settings)
    settings = await asyncio.to_thread(recipe.check, settings)
    finished = await run_steps(settings, Scope())
    changes = await asyncio.to_thread(changes_since, before, settings)
    promotion = await promote(settings) if settings.tracking and promote_if_better else None
    await show_night(settings, finished.stages, changes, promotion)
    return Night(finished=finished, changes=changes, promotion=promotion)


def latest_rows(config: RecipeConfig) -> dict[str, Path | None]:
    """The file of each role's rows in the most recent run; None if there is none."""
    return {role: _latest(config, role) for role in recipe_of(config).pools(config)}


def _latest(config: RecipeConfig, role: str) -> Path | None:
    store = open_store(config.store)
    manifest = store.latest(config.name, f"ingest/{role}")
    return None if manifest is None else Examples.open(store, store.ref(manifest)).path


def changes_since(before: dict[str, Path | None], config: RecipeConfig) -> dict[str, PoolDiff]:
    return {role: compare_rows(before[role], rows) for role, rows in latest_rows(config).items()}
