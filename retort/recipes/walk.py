"""Every step of a run, without making one: for plans, repairs and parts of a run."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retort.artifacts.examples import Examples
from retort.config import RecipeConfig
from retort.recipes.base import Do, Recipe
from retort.records.base import ArtifactRef
from retort.records.result import Champion, Result
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.ingest import Ingest
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import Store

Look = Callable[[Step], ArtifactRef]


async def whole_run(
    recipe: Recipe[Any, Any], config: RecipeConfig, do: Do, champion: Champion | None, origin: Mapping[str, str]
) -> tuple[Result, ArtifactRef]:
    """(what the run made, its report). `config` is resolved; `origin` is what MLflow is told of where it comes from."""
    result = await recipe.run(config, do, champion)
    page = await do(recipe.report(config, result))
    if config.tracking:
        await do(recipe.track(config, result, page, origin))
    return result, page


async def walk(recipe: Recipe[Any, Any], config: RecipeConfig, look: Look, champion: Champion | None = None) -> None:
    """The whole run, where each step is only looked at; a verdict that is not known yet counts as accepted."""
    await whole_run(recipe, recipe.resolve(config), _at_once(look), champion, {})


async def steps_of(
    recipe: Recipe[Any, Any], config: RecipeConfig, store: Store, champion: Champion | None = None
) -> list[Step]:
    """Every step of a run, in the order of the work."""
    steps: list[Step] = []

    def look(step: Step) -> ArtifactRef:
        steps.append(step)
        return found_or_named(store, step)

    await walk(recipe, config, look, champion)
    return steps


async def llm_labelings(
    recipe: Recipe[Any, Any], config: RecipeConfig, store: Store
) -> tuple[list[PseudolabelLlm], dict[str, Ingest]]:
    """(the steps in which an LLM labels, the ingests of their rows by key), in the store or not."""
    steps = await steps_of(recipe, config, store)
    ingests = {step.key: step for step in steps if isinstance(step, Ingest)}
    return [step for step in steps if isinstance(step, PseudolabelLlm)], ingests


def found_or_named(store: Store, step: Step) -> ArtifactRef:
    """The step's artifact, or where it would be."""
    manifest = store.find(step.artifact_kind, step.key)
    return store.ref(manifest) if manifest else ArtifactRef(uri="", kind=step.artifact_kind, key=step.key)


@contextmanager
def rows_of(settings: RecipeConfig, store: Store, step: Ingest) -> Iterator[Examples]:
    """A source's rows; made aside, and gone afterwards, where the store has none: a plan writes nothing."""
    manifest = store.find(step.artifact_kind, step.key)
    if manifest is not None:
        yield Examples.open(store, store.ref(manifest))
        return
    with TemporaryDirectory(prefix="retort-rows-") as folder:
        step.run(StepContext(store, Path(folder), settings.execution))
        yield Examples.aside(Path(folder))


def _at_once(look: Look) -> Do:
    """A `do` with nothing to wait for: coroutines that an error leaves behind unawaited would be warned about."""

    def do(step: Step) -> Awaitable[ArtifactRef]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(look(step))
        return answer

    return do
