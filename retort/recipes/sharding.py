"""Does a step in shards, if the config says so: splits its rows, has each shard done, and gathers them in the step."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from retort.config import ExecutionConfig
from retort.errors import RetortError, StageFailed
from retort.recipes.base import Do
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.pseudolabel_llm import AskShard
from retort.steps.split_rows import Shard, SplitRows, Splittable, rows_of_shard, shards_of
from retort.store import Store

DoShards = Callable[[Step, Sequence[Shard]], Awaitable[tuple[ArtifactRef, ...]]]
"""Makes or finds the artifacts of a step's shards. If one fails, the others still finish."""


async def in_shards(
    execution: ExecutionConfig, store: Store, step: Step, alone: Do, split: Do, do_shards: DoShards
) -> ArtifactRef:
    """The step's artifact. `alone` does the step itself, on all rows or with its shards; `split` splits its rows.

    A step that is in the store, or whose rows are one shard, is not split.
    """
    size = rows_of_shard(execution, step)
    if size is None or not isinstance(step, Splittable) or await _is_made(store, step):
        return await alone(step)
    rows = await split(SplitRows(name=f"{step.name}/split", whole=step.key, rows_of_shard=size, of=step))
    try:
        return await _gathered(store, step, rows, alone, do_shards)
    except RetortError:
        if not await _is_made(store, step):
            raise
    return await alone(step)  # another run has made it meanwhile, and cleared the shards away


async def _gathered(store: Store, step: Splittable, split: ArtifactRef, alone: Do, do_shards: DoShards) -> ArtifactRef:
    manifest = await asyncio.to_thread(store.manifest_of, split)
    shards = shards_of(step, split, manifest)
    made = await do_shards(step, shards) if len(shards) > 1 else ()
    try:
        ref = await alone(step.model_copy(update={"shards": made}))
    except StageFailed:  # too few labels: the next run asks again about the rows that got none
        await asyncio.to_thread(_clear, store, [split, *asked_about(shards, made)])
        raise
    await asyncio.to_thread(_clear, store, [split, *asked_about(shards, made)])
    return ref


def asked_about(shards: Sequence[Shard], made: Sequence[ArtifactRef]) -> list[ArtifactRef]:
    """What an LLM's shards made, which is of no use to any other labeling. Those of a student may be found again."""
    return [ref for shard, ref in zip(shards, made, strict=False) if isinstance(shard, AskShard)]


def _clear(store: Store, refs: Sequence[ArtifactRef]) -> None:
    for ref in refs:
        store.discard(ref.kind, ref.key)


async def _is_made(store: Store, step: Step) -> bool:
    return await asyncio.to_thread(store.find, step.artifact_kind, step.key) is not None
