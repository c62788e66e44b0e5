"""Promotion to champion, by the gate's verdict or by a person who gives a reason. The outcome is emitted as an event
that automations can forward.
"""

import asyncio

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.utilities.urls import url_for

from retort.config import RecipeConfig
from retort.errors import GateRefused
from retort.records.base import Record
from retort.tracking import promotion
from retort.tracking.promotion import Promotion

EVENTS = "retort.gate"


class PromotionResult(Record):
    """The gate's verdict and its consequence."""

    outcome: str
    """`promoted`, `forced`, `reigns` (the new student is the champion already) or `refused`."""
    version: str | None
    """The champion's version afterwards; None if the gate refused."""
    replaced: str | None = None
    text: str
    """The outcome in sentences, for people."""


@task(name="promote", task_run_name="promotion", cache_policy=NO_CACHE, persist_result=False)
async def promote(config: RecipeConfig, forced_because: str | None = None) -> PromotionResult:
    """Promote the challenger if the gate let it pass. A refusal is a result, not a failure."""
    try:
        done = await asyncio.to_thread(promotion.promote, config, forced_because=forced_because)
        result = PromotionResult(
            outcome=done.outcome, version=done.version, replaced=done.replaced, text=_sentence(done)
        )
    except GateRefused as refusal:
        result = PromotionResult(outcome="refused", version=None, text=str(refusal))
    get_run_logger().info("%s", result.text)
    announce(config, result)
    return result


def _sentence(done: Promotion) -> str:
    what = {
        "promoted": f"version {done.version} of '{done.model}' is the champion now",
        "forced": f"version {done.version} of '{done.model}' was made the champion by force",
        "reigns": f"version {done.version} of '{done.model}' is the champion, as before",
    }[done.outcome]
    after = f", after version {done.replaced}" if done.replaced else ""
    return f"{what}{after}. {' '.join(done.reasons)}".strip()


def announce(config: RecipeConfig, result: PromotionResult) -> None:
    """Emit the event `retort.gate.OUTCOME`, with the URL of the page that shows the report."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    emit_event(
        f"{EVENTS}.{result.outcome}",
        resource={"prefect.resource.id": f"retort.model.{config.name}", "prefect.resource.name": config.name},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.role": "flow-run"}]
        if run
        else [],
        payload={"text": result.text, "report": (run and url_for(run)) or ""},
    )
