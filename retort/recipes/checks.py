"""Cheap checks for user errors before a run of any recipe. They need neither torch nor Prefect."""

from collections.abc import Iterable, Iterator

from retort.artifacts.examples import Examples, set_aside
from retort.config import ExecutionConfig, Problem, RecipeConfig, expand
from retort.data.completions import BadLine, read_completions
from retort.data.recorded import coverage
from retort.errors import ConfigError, DataError
from retort.models.gpus import usable_gpus
from retort.problems import problem_for
from retort.recipes.execute import made_or_found
from retort.records.base import ArtifactRef
from retort.records.result import Champion
from retort.records.set_aside import SetAside
from retort.steps.ingest import IN_LABELED, Ingest
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


def check_set_aside(store: Store, pool: ArtifactRef, most: float) -> SetAside | None:
    """What was set aside of the pool. Raises DataError if it is more than the share `most` of its rows."""
    aside = set_aside(store, pool)
    if aside is not None and (excess := aside.excess(most)):
        raise DataError(f"data.unlabeled: {excess}")
    return aside


def rows_found(store: Store, ref: ArtifactRef, most: float) -> str:
    """For `doctor`: the number of rows, and how many were set aside and where. Raises DataError if it is too many."""
    aside = check_set_aside(store, ref, most)
    return f"{ref.rows} rows" if aside is None else f"note: {ref.rows} rows; {aside.text} ({aside.places})"


def check_gpus_of_students(execution: ExecutionConfig) -> str:
    """Return, for `doctor`, which GPUs train a student. Raises ConfigError if that is to happen on this machine and it
    has too few."""
    if execution.student_pool is not None:
        return f"{execution.gpus_per_student} of a worker of the work pool '{execution.student_pool}' train a student"
    return check_gpus_per_student(execution)


def check_gpus_per_student(execution: ExecutionConfig) -> str:
    """Like `check_gpus_of_students`, on the machine where they are trained."""
    wanted = execution.gpus_per_student
    if wanted == 1:
        return "at most one GPU trains a student"
    if execution.device == "cpu":
        raise ConfigError(f"execution.gpus_per_student = {wanted}: not with execution.device = 'cpu'; leave out either")
    found = len(usable_gpus())
    if wanted > found:
        there = f"{found or 'no'} GPU{'s' if found > 1 else ''}"
        raise ConfigError(
            f"execution.gpus_per_student = {wanted}: this machine has {there} to train on; lower it, or name in "
            "execution.student_pool a work pool whose machines have as many"
        )
    return f"up to {wanted} of this machine's {found} GPUs train a student"


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

    Raises DataError if no line is a completion, and for completions of unknown rows, unless the pool was limited (not
    `whole_pool`) or they may be those of rows that were left out for the labeled set, or set aside, of which an id may
    be wrong or cannot be read.
    """
    pool = Examples.open(store, step.pool)
    aside = [row["example_id"] for row in pool.set_aside_rows()]
    found = coverage(_completed(step), pool.path, [one for one in aside if one is not None])
    if found.unknown > len(aside) + pool.manifest.counts.get(IN_LABELED, 0) and whole_pool:
        raise DataError(
            f"teacher.completions = '{step.path}': {found.unknown} completion(s) for ids that the pool does not have, "
            f"such as '{found.first_unknown}'"
        )
    return found.missing


def _completed(step: PseudolabelRecorded) -> Iterator[str]:
    """The ids that lines of the file of completions have, whether a line holds a completion or says why there is none.

    Raises DataError if none holds one: then it is another kind of file.
    """
    first_bad, num_good = None, 0
    for one in read_completions(step.path, step.endpoint_url):
        if one.example_id:
            yield one.example_id
        if isinstance(one, BadLine):
            first_bad = first_bad or one
        else:
            num_good += 1
    if first_bad is not None and not num_good:
        raise DataError(
            f"teacher.completions = '{step.path}': no line is a completion; {first_bad.detail}; needed are lines of a "
            "batch's output (of OpenAI's chat completions or responses, Anthropic or Gemini), see docs/teachers.md"
        )
