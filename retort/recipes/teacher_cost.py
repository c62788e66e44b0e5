"""Estimates what a config's LLM teachers would cost, from their rows, ledgers and prices."""

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
"""Ingest steps by the key of the rows that they make."""


def forecasts(config: RecipeConfig, store: Store, steps: Sequence[PseudolabelLlm], ingests: Ingests) -> list[Forecast]:
    """Forecast each teacher of `steps`: labelings by an LLM that are not in the store. Rows that a teacher labels in
    several steps are counted once, as its ledger does."""
    by_teacher: dict[tuple[str, str], list[PseudolabelLlm]] = {}
    for step in steps:
        by_teacher.setdefault((step.config.model_dump_json(), step.labeled.key), []).append(step)
    return [_forecast(config, store, labelings, ingests) for labelings in by_teacher.values()]


def _forecast(config: RecipeConfig, store: Store, labelings: Sequence[PseudolabelLlm], ingests: Ingests) -> Forecast:
    """`labelings` are of one teacher, with the same labeled set."""
    step = labelings[0]
    keys = dict.fromkeys([step.labeled.key, *(one.pool.key for one in labelings)])
    with ExitStack() as stack:
        rows = {key: stack.enter_context(rows_of(config, store, ingests[key])) for key in keys}
        builder = request_builder(problem_for(step.problem), step.config, rows[step.labeled.key].gold())
        weights = teacher_weights(step.config, step.endpoint_url and expand(step.endpoint_url))
        return forecast(store, Ledger(store, step.identity), builder, weights, [one.path for one in rows.values()])


def teacher_cost(facts: Mapping[str, Any], found: Sequence[Forecast]) -> dict[str, Any]:
    """Add requests and cost to the recipe's facts about the teacher. A teacher that is not an LLM costs nothing."""
    if len(found) == 1 and facts["kind"] == found[0].kind:
        return found[0].model_dump()
    requests, money = sum(one.requests for one in found), sum((one.money for one in found), 0.0)
    members = {"members": [one.model_dump() for one in found]} if found else {}
    return {**facts, "requests": requests, "money": money, **members}
