"""Cheap checks for user errors before a run of any recipe. They need neither torch nor Prefect."""

from collections.abc import Iterable

from retort.artifacts.examples import Examples
from retort.config import Problem, RecipeConfig, expand
from retort.data.completions import read_completions
from retort.errors import ConfigError, DataError
from retort.problems import problem_for
from retort.recipes.execute import made_or_found
from retort.records.base import ArtifactRef
from retort.records.result import Champion
from retort.steps.ingest import Ingest
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.steps.pseudolabel_recorded import PseudolabelRecorded
from retort.store import Store
from retort.teachers.checks import check_teacher
from retort.teachers.identity import teacher_weights
from retort.teachers.request_builder import request_builder

MOST_SHARED = 0.2
"""Largest share of a set's texts that may also occur in another set. Short requests and answers often repeat."""


def ingest_all(config: RecipeConfig, steps: Iterable[Ingest]) -> tuple[ArtifactRef, ...]:
    """Ingest what the store lacks; reading the rows checks the data."""
    return tuple(made_or_found(config, step) for step in steps)


def texts_of(store: Store, ref: ArtifactRef) -> set[str]:
    return {row["text"] for row in Examples.open(store, ref).rows(["text"])}


def check_champion(name: str, problem: Problem, champion: Champion | None) -> None:
    """Raises ConfigError if the champion solves another problem. `name` is the config's."""
    kind = champion.fingerprint["params"]["problem"]["kind"] if champion else problem.kind
    if champion and kind != problem.kind:
        raise ConfigError(
            f"name = '{name}': the champion of this name, version {champion.version}, solves '{kind}' and not "
            f"problem.kind = '{problem.kind}'; give this job another name"
        )


def check_llm(store: Store, step: PseudolabelLlm) -> int:
    """Check everything about a teacher that needs no engine and costs no tokens. Returns its number of demonstrations.

    The step's labeled rows must be in the store.
    """
    gold = Examples.open(store, step.labeled).gold()
    builder = request_builder(problem_for(step.problem), step.config, gold)
    server = step.endpoint_url
    check_teacher(step.config, builder, teacher_weights(step.config, server and expand(server)))
    return len(builder.excluding)


def check_recorded(store: Store, step: PseudolabelRecorded, *, whole_pool: bool) -> int:
    """Return how many rows of the pool have no completion.

    Raises DataError for completions of unknown rows, unless the pool was limited (not `whole_pool`).
    """
    completions = read_completions(step.path, step.endpoint_url)
    completed = {one.example_id for one in completions if one.example_id}
    ids = {row["example_id"] for row in Examples.open(store, step.pool).rows(["example_id"])}
    unknown = completed - ids
    if unknown and whole_pool:
        raise DataError(
            f"teacher.completions = '{step.path}': {len(unknown)} completion(s) for ids that the pool does not have, "
            f"such as '{min(unknown)}'"
        )
    return len(ids - completed)
