"""What is checked before a run of any recipe is started, without torch and without Prefect: cheap, and about user
errors."""

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
"""Some equal texts are normal in short requests and answers; a larger share of a set's is not."""


def ingest_all(config: RecipeConfig, steps: Iterable[Ingest]) -> tuple[ArtifactRef, ...]:
    """Ingest what the store lacks: reading the rows is the check of the data."""
    return tuple(made_or_found(config, step) for step in steps)


def texts_of(store: Store, ref: ArtifactRef) -> set[str]:
    return {row["text"] for row in Examples.open(store, ref).rows(["text"])}


def check_champion(name: str, problem: Problem, champion: Champion | None) -> None:
    """Raises ConfigError where the two students cannot be compared. `name` is the config's."""
    kind = champion.fingerprint["params"]["problem"]["kind"] if champion else problem.kind
    if champion and kind != problem.kind:
        raise ConfigError(
            f"name = '{name}': the champion of this name, version {champion.version}, solves '{kind}' and not "
            f"problem.kind = '{problem.kind}'; give this job another name"
        )


def check_llm(store: Store, step: PseudolabelLlm) -> int:
    """Everything about a teacher that can be seen without starting an engine or paying for a token; its labeled rows
    are in the store. Returns how many demonstrations it is shown."""
    gold = Examples.open(store, step.labeled).gold()
    builder = request_builder(problem_for(step.problem), step.config, gold)
    server = step.endpoint_url
    check_teacher(step.config, builder, teacher_weights(step.config, server and expand(server)))
    return sum(turn.role == "assistant" for turn in builder.everything)


def check_recorded(store: Store, step: PseudolabelRecorded, *, whole_pool: bool) -> int:
    """How many rows of the pool have no completion. Raises DataError for a completion of a row that is not there, which
    is normal where the pool was limited (not `whole_pool`)."""
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
