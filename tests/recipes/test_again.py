"""What a forced step takes along, in whichever order a run comes to it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from any_step import AnyStep
from retort.recipes.scope import Scope, again
from retort.records.base import ArtifactRef
from retort.steps.base import Step

OLD, SINCE = "2024-01-01T00:00:00.000+00:00", "2024-06-01T00:00:00.000+00:00"


class Kept:
    """A store of artifacts that were all made long ago."""

    def __init__(self) -> None:
        self.discarded: list[str] = []

    def find(self, kind: str, key: str) -> Any:
        return None if key in self.discarded else SimpleNamespace(created_at=OLD)

    def discard(self, kind: str, key: str) -> None:
        self.discarded.append(key)


def step(name: str, number: int, *refs: Step) -> Step:
    inputs = tuple(ArtifactRef(uri="", kind="things", key=ref.key) for ref in refs)
    return AnyStep(name=name, values={"number": number}, refs={"of": inputs} if inputs else {})


FINAL, TWIN = step("final/student", 1), step("vanilla-kd/student", 1)
SCORES, OTHER = step("vanilla-kd/test", 2, TWIN), step("supervised/student", 3)


@pytest.mark.parametrize("order", [(FINAL, TWIN, SCORES, OTHER), (TWIN, SCORES, OTHER, FINAL)])
def test_equal_steps_and_what_rests_on_them_are_made_again(order: tuple[Step, ...]) -> None:
    store, done = Kept(), list[str]()

    async def do(step: Step) -> ArtifactRef:
        done.append(step.name)
        return ArtifactRef(uri="", kind="things", key=step.key)

    async def run() -> None:
        forced = again(Scope(force=("final",)), order, store, SINCE, do)  # type: ignore[arg-type]
        for one in order:
            await forced(one)

    asyncio.run(run())
    assert FINAL.key == TWIN.key
    assert sorted(store.discarded) == sorted([FINAL.key, SCORES.key])
    assert done == [one.name for one in order]
