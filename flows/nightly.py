"""What a schedule starts: distil what is new, and promote the final student if it beats the reigning one.

Nothing is asked, trained or evaluated twice: rows that the teacher's ledger knows are not asked again, stages whose
inputs and settings are the same are found in the store. A night without news finds everything and ends in seconds.
"""

import asyncio
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.mckd import Finished, carry_out, run_name
from retort.config import MckdConfig
from retort.config.loading import load_config
from retort.data.changes import PoolDiff, compare_rows
from retort.recipes.execute import open_store
from retort.recipes.mckd.checks import check
from retort.recipes.scope import Scope
from retort.records.base import Record
from retort.steps.ingest import ROWS
from tasks.artifacts import show_night
from tasks.promotion import Judged, promote

POOL = "ingest/unlabeled"


class Night(Record):
    """What a night returns."""

    finished: Finished
    news: PoolDiff
    promotion: Judged | None
    """None where the config has no registry, or promotion was not asked for."""


@flow(name="nightly", flow_run_name=run_name, persist_result=False)
async def nightly(
    config: Annotated[str, Field(min_length=1)],
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    promote_if_better: bool = True,
) -> Night:
    """Distil what is new since the last night; compare with the champion; promote if the gate says so.

    Args:
        config: The YAML file: a path below the project's folder, or s3://bucket/key.
        overrides: Fields to change in it, each as FIELD=VALUE, such as student.warm_start=true.
        promote_if_better: Move the alias champion if the gate lets the new student pass. Else only tell.
    """
    settings = await asyncio.to_thread(load_config, config, overrides)
    last_pool = await asyncio.to_thread(latest_pool, settings)
    settings = await asyncio.to_thread(check, settings)
    finished = await carry_out(settings, Scope())
    news = await asyncio.to_thread(compare_rows, last_pool, await asyncio.to_thread(latest_pool, settings))
    promotion = await promote(settings) if settings.tracking and promote_if_better else None
    night = Night(finished=finished, news=news, promotion=promotion)
    await show_night(settings, finished.stages, news, promotion)
    return night


def latest_pool(config: MckdConfig) -> Path | None:
    """The pool's rows in the run before, or after a run in that; None if there was none."""
    store = open_store(config.store)
    manifest = store.latest(config.name, POOL)
    return None if manifest is None else store.fetch(store.ref(manifest)) / ROWS
