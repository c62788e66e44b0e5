"""Cleanup of what neither a registered model nor a recent run needs. `retort maintain` does the same."""

import asyncio
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from pydantic import Field

from retort.commands import maintain as maintenance
from retort.commands.maintain import GRACE_HOURS, NIGHTS, Amount, Maintained
from retort.recipes import load_config


@flow(name="maintain", persist_result=False)
async def maintain(
    config: Annotated[str, Field(min_length=1)],
    nights: Annotated[int, Field(ge=0)] = NIGHTS,
    grace_hours: Annotated[float, Field(ge=0)] = GRACE_HOURS,
    delete: bool = False,
) -> Maintained:
    """Free space in the store. Without `delete` it only tells what it would free.

    Args:
        config: The YAML file: a path below the project's folder, or s3://bucket/key.
        nights: Keep what the last so many runs of each config rest on.
        grace_hours: Keep whatever is younger than that.
        delete: Really delete.
    """
    settings = await asyncio.to_thread(load_config, config)
    done = await asyncio.to_thread(
        maintenance.maintain, settings, nights=nights, grace_hours=grace_hours, delete=delete
    )
    await acreate_markdown_artifact(as_markdown(done), key="maintenance")
    return done


def as_markdown(done: Maintained) -> str:
    """What was (or would be) freed and what is kept, for this run's page."""
    freed = sum(amount.bytes for amount in done.freed.values())
    lines = [
        f"# {'Freed' if done.deleted else 'Would free'} {freed / 1e6:,.1f} MB",
        "",
        f"Kept for {done.registered} registered versions and {done.runs} runs.",
        "",
        "| what | freed | MB | kept | MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    nothing = Amount(count=0, bytes=0)
    for kind in sorted(done.freed.keys() | done.kept.keys()):
        gone, kept = done.freed.get(kind, nothing), done.kept.get(kind, nothing)
        lines.append(f"| {kind} | {gone.count} | {gone.bytes / 1e6:,.1f} | {kept.count} | {kept.bytes / 1e6:,.1f} |")
    return "\n".join(lines)
