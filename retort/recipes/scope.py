"""Which part of a run to do: only some steps, everything from one step on, or some steps again."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from retort.errors import ConfigError
from retort.recipes.base import Do
from retort.records.base import ArtifactRef, Record
from retort.steps.base import Step
from retort.store import Store


class Scope(Record):
    """Steps have the names that `retort plan` shows; `*` matches anything, and `stage1` all of `stage1/...`."""

    only: tuple[str, ...] = ()
    """Make only these steps; their inputs must be in the store."""
    from_stage: str | None = None
    """Everything before this step must be in the store, so that nothing is paid for twice by mistake."""
    force: tuple[str, ...] = ()
    """Make these steps again, and everything that depends on them."""


def check_scope(scope: Scope, steps: list[Step], store: Store) -> None:
    """Raises ConfigError for a name that no step has, or if the store lacks something that the scope expects there.

    `steps` is in the order of execution.
    """
    names = [step.name for step in steps]
    given = [("only", name) for name in scope.only] + [("force", name) for name in scope.force]
    given += [("from_stage", scope.from_stage)] if scope.from_stage else []
    for field, pattern in given:
        if not any(is_named(name, [pattern]) for name in names):
            raise ConfigError(f"{field} = '{pattern}': no stage is called that; stages: {', '.join(names)}")
    if scope.from_stage:
        first = next(at for at, name in enumerate(names) if is_named(name, [scope.from_stage]))
        for step in steps[:first]:
            if store.find(step.artifact_kind, step.key) is None:
                raise ConfigError(
                    f"from_stage = '{scope.from_stage}': {step.name} comes before it and is not in the store; "
                    "`retort plan` says what changed"
                )


def is_named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*") for pattern in patterns)


async def make_only(scope: Scope, steps: list[Step], store: Store, do: Do) -> None:
    """Make the steps of `scope.only`.

    Raises ConfigError before making anything if an input is neither in the store nor among the steps.
    """
    chosen = [step for step in steps if is_named(step.name, scope.only)]
    names = {step.key: step.name for step in steps}
    coming = {step.key for step in chosen}
    for step in chosen:
        for ref in (ref for refs in step.inputs.values() for ref in refs):
            if ref.key not in coming and store.find(ref.kind, ref.key) is None:
                raise ConfigError(
                    f"only = '{step.name}': needs {names.get(ref.key, ref.kind)}, which is not in the store"
                )
    for step in chosen:
        await do(step)


def again(scope: Scope, steps: Iterable[Step], store: Store, since: str, do: Do) -> Do:
    """Wrap `do` so that it first discards the artifacts of `scope.force` and of the steps that depend on them.

    `steps` are those of the plan: one that has the key of a step of `scope.force` is made again too, whichever of the
    two comes first. Artifacts made after `since` (ISO 8601, UTC, milliseconds) are kept, so that a retried run does not
    make them yet again.
    """
    renewed = {step.key for step in steps if is_named(step.name, scope.force)}

    async def forced(step: Step) -> ArtifactRef:
        inputs = {ref.key for refs in step.inputs.values() for ref in refs}
        if step.key in renewed or inputs & renewed or is_named(step.name, scope.force):
            renewed.add(step.key)
            manifest = store.find(step.artifact_kind, step.key)
            if manifest is not None and manifest.created_at < since:
                store.discard(step.artifact_kind, step.key)
        return await do(step)

    return forced if scope.force else do
