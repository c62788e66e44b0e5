"""Manual promotion from the Prefect UI, like `retort promote` on the command line."""

import asyncio
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import Field

from retort.recipes import load_config
from tasks.promotion import PromotionResult, promote


@flow(name="promote", persist_result=False)
async def promote_challenger(
    config: Annotated[str, Field(min_length=1)],
    force: bool = False,
    reason: str | None = None,
) -> PromotionResult | State[PromotionResult]:
    """Make the challenger the champion, if the gate let it pass.

    Args:
        config: The YAML file: a path below the project's folder, or s3://bucket/key.
        force: Promote it whatever the gate said. Needs a reason.
        reason: Why; kept with the model version, with your name and the time.
    """
    settings = await asyncio.to_thread(load_config, config)
    result = await promote(settings, (reason or "") if force else None)
    return Failed(message=result.text) if result.outcome == "refused" else result
