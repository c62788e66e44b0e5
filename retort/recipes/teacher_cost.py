"""What the LLM teachers of a config would cost: by their rows, in the store or at their source, ledgers and prices."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from retort.config import RecipeConfig, expand
from retort.problems import problem_for
from retort.recipes.walk import rows_of
from retort.steps.ingest import Ingest
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import Store
from retort.teachers.forecast import Forecast, forecast
from retort.teachers.identity import teacher_weights
from retort.teachers.ledger import Ledger
from retort.teachers.request_builder import request_builder

Ingests = Mapping[str, Ingest]
"""By the key of the rows that they make."""


def forecasts(config: RecipeConfig, store: Store, asked: Sequence[PseudolabelLlm], ingests: Ingests) -> list[Forecast]:
    """`asked`: the steps not in the store in which a teacher would be asked row by row."""
    return [_forecast(config, store, step, ingests) for step in asked]


def _forecast(config: RecipeConfig, store: Store, step: PseudolabelLlm, ingests: Ingests) -> Forecast:
    with ExitStack() as stack:
        pool, labeled = (
            stack.enter_context(rows_of(config, store, ingests[ref.key])) for ref in (step.pool, step.labeled)
        )
        builder = request_builder(problem_for(step.problem), step.config, labeled.gold())
        weights = teacher_weights(step.config, step.endpoint_url and expand(step.endpoint_url))
        return forecast(store, Ledger(store, step.identity), builder, weights, [labeled.path, pool.path])


def teacher_cost(facts: Mapping[str, Any], found: Sequence[Forecast]) -> dict[str, Any]:
    """`facts` are the recipe's of the teacher; one that is no LLM is asked nothing that costs money."""
    if len(found) == 1 and facts["kind"] == found[0].kind:
        return found[0].model_dump()
    requests, money = sum(one.requests for one in found), sum((one.money for one in found), 0.0)
    members = {"members": [one.model_dump() for one in found]} if found else {}
    return {**facts, "requests": requests, "money": money, **members}
