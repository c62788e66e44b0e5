"""What part of a run is done: only some steps, from one step on, or some of them again."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from retort.errors import ConfigError
from retort.recipes.base import Do
from retort.records.base import ArtifactRef, Record
from retort.steps.base import Step
from retort.store import Store


class Scope(Record):
    """Steps are named as `retort plan` names them; `*` stands for anything, and `stage1` for all of `stage1/...`."""

    only: tuple[str, ...] = ()
    """Make these and nothing else; what they need must be in the store."""
    from_stage: str | None = None
    """What comes before this step must be in the store, so that nothing there is paid for twice by mistake."""
    force: tuple[str, ...] = ()
    """Make these again, and whatever rests on them."""


def check_scope(scope: Scope, steps: list[Step], store: Store) -> None:
    """`steps` in the order of the work. Raises ConfigError for a name that no step has, and where something that the
    scope expects in the store is not there.
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
    """Raises ConfigError, before anything is made, where an input is neither in the store nor among the steps."""
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


def again(scope: Scope, store: Store, since: str, do: Do) -> Do:
    """A `do` that first forgets the artifacts of `scope.force` and of what rests on them.

    Ones made after `since` (ISO 8601, UTC, milliseconds) are kept: a retried run does not repeat what it has repeated.
    """
    renewed: set[str] = set()

    async def forced(step: Step) -> ArtifactRef:
        inputs = {ref.key for refs in step.inputs.values() for ref in refs}
        if inputs & renewed or is_named(step.name, scope.force):
            renewed.add(step.key)
            manifest = store.find(step.artifact_kind, step.key)
            if manifest is not None and manifest.created_at < since:
                store.discard(step.artifact_kind, step.key)
        return await do(step)

    return forced if scope.force else do
