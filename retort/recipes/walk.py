"""Lists the steps of a run without making anything, for plans, repairs and partial runs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from retort.artifacts.examples import Examples
from retort.config import RecipeConfig
from retort.io.scratch import scratch
from retort.recipes.base import IN_ORDER, Do, Recipe
from retort.records.base import ArtifactRef
from retort.records.result import Champion, Result
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.ingest import Ingest
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import Store
from retort.store.opening import refusals, usable_store
from retort.tracking.champion import reigning_student

Look = Callable[[Step], ArtifactRef]


async def whole_run(
    recipe: Recipe[Any, Any], config: RecipeConfig, do: Do, champion: Champion | None, origin: Mapping[str, str]
) -> tuple[Result, ArtifactRef]:
    """Do a whole run. Returns (result, report).

    `config` must be resolved. `origin` says where the run comes from, for MLflow.
    """
    result = await recipe.run(config, do, champion)
    page = await do(recipe.report(config, result))
    if config.tracking:
        await do(recipe.track(config, result, page, origin))
    return result, page


async def walk(recipe: Recipe[Any, Any], config: RecipeConfig, look: Look, champion: Champion | None = None) -> None:
    """Pass every step of a run to `look` instead of making it. A verdict that is not known yet counts as accepted."""
    before = IN_ORDER.set(True)
    try:
        await whole_run(recipe, recipe.resolve(config), _at_once(look), champion, {})
    finally:
        IN_ORDER.reset(before)


async def steps_of(
    recipe: Recipe[Any, Any], config: RecipeConfig, store: Store, champion: Champion | None = None
) -> list[Step]:
    """Every step of a run, in the order of execution."""
    steps: list[Step] = []

    def look(step: Step) -> ArtifactRef:
        steps.append(step)
        return found_or_named(store, step)

    await walk(recipe, config, look, champion)
    return steps


async def missing_steps(recipe: Recipe[Any, Any], config: RecipeConfig) -> list[Step]:
    """The steps that a run would make, in the order of execution."""
    with refusals():
        store = usable_store(config)
        missing: list[Step] = []

        def look(step: Step) -> ArtifactRef:
            ref = found_or_named(store, step)
            if not ref.uri:
                missing.append(step)
            return ref

        await walk(recipe, config, look, reigning_student(config, store))
        return missing


async def llm_labelings(
    recipe: Recipe[Any, Any], config: RecipeConfig, store: Store
) -> tuple[list[PseudolabelLlm], dict[str, Ingest]]:
    """Return (the steps in which an LLM labels, the ingest steps by key), whether or not the store has them."""
    steps = await steps_of(recipe, config, store)
    ingests = {step.key: step for step in steps if isinstance(step, Ingest)}
    return [step for step in steps if isinstance(step, PseudolabelLlm)], ingests


def found_or_named(store: Store, step: Step) -> ArtifactRef:
    """The step's artifact, or a reference to where it would be."""
    manifest = store.find(step.artifact_kind, step.key)
    return store.ref(manifest) if manifest else ArtifactRef(uri="", kind=step.artifact_kind, key=step.key)


@contextmanager
def rows_of(settings: RecipeConfig, store: Store, step: Ingest) -> Iterator[Examples]:
    """Yield a source's rows. A plan writes nothing, so rows that the store lacks are read into a temporary folder."""
    manifest = store.find(step.artifact_kind, step.key)
    if manifest is not None:
        yield Examples.open(store, store.ref(manifest))
        return
    with scratch("rows") as folder:
        step.run(StepContext(store, folder, settings.execution))
        yield Examples.aside(folder)


def _at_once(look: Look) -> Do:
    """A `do` that returns completed futures. Coroutines left unawaited after an error would cause warnings."""

    def do(step: Step) -> Awaitable[ArtifactRef]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(look(step))
        return future

    return do
