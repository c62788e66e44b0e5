"""What a recipe is: one way from a config to a promoted student."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from retort.config import RecipeConfig
from retort.records.base import ArtifactRef
from retort.records.result import Champion, Result
from retort.report.base import Summary
from retort.report.step import ReportStep
from retort.steps.base import Step
from retort.steps.evaluate import EvaluateStudent
from retort.steps.gate import Gate
from retort.tracking.step import Track

if TYPE_CHECKING:
    from rich.console import RenderableType

C = TypeVar("C", bound=RecipeConfig)
R = TypeVar("R", bound=Result)
Do = Callable[[Step], Awaitable[ArtifactRef]]
"""Makes a step's artifact or finds it; `retort plan` passes one that only looks into the store."""
Look = Callable[[Any], str]
"""One thing that `retort doctor` looks at, given the config: returns what it found (`note: ...` for a remark), or
raises."""


class Recipe(ABC, Generic[C, R]):
    """Everything that distinguishes one method from another; runs, plans, nights and reports are the same for all.

    `distill` says what is to be done, in which order and from what; `do` does it. A new recipe is a subclass of this
    and a line in `retort.recipes.RECIPES`.
    """

    kind: ClassVar[str]
    """`kind` at the top of the YAML file."""
    former_kinds: ClassVar[tuple[str, ...]] = ()
    config: type[C]
    summary: type[Summary]
    """What a report's facts are read as."""

    @abstractmethod
    def resolve(self, config: C) -> C:
        """Fill what the config leaves to the data: the problem's schema. Reads sources."""

    @abstractmethod
    def check(self, config: C) -> C:
        """Everything that can be wrong and is cheap to see. Returns the resolved config; its data is in the store.

        Raises ConfigError, DataError or StoreUnavailable.
        """

    @abstractmethod
    def teacher_facts(self, config: C) -> dict[str, Any]:
        """What a plan says of the teacher beside what it costs: `kind`, and where recorded labels come from."""

    @abstractmethod
    def pools(self, config: C) -> tuple[str, ...]:
        """Roles (`ingest/ROLE`) of the rows that grow from night to night."""

    @abstractmethod
    def looks(self, config: C) -> Mapping[str, Look]:
        """What `retort doctor` looks at beside versions, store and tracking, by name."""

    @abstractmethod
    async def distill(self, config: C, do: Do, champion: Champion | None) -> R:
        """From the data to the final student and all that it is compared with, but the champion."""

    @abstractmethod
    def evaluations(self, config: C, name: str, champion: Champion, result: R) -> Iterable[EvaluateStudent]:
        """How the champion is scored on the rows of `result.test_scores`, in the same order."""

    @abstractmethod
    def gate(self, config: C, result: R) -> Gate:
        """The final student's checks; `reigning` is filled in by `challenge`."""

    @abstractmethod
    def report(self, config: C, result: R) -> ReportStep:
        """Made anew only if something that it reports on is new."""

    @abstractmethod
    def track(self, config: C, result: R, page: ArtifactRef, origin: Mapping[str, str]) -> Track:
        """`origin` says where the run comes from. Needs `config.tracking`."""

    @abstractmethod
    def render(self, summary: Any) -> "RenderableType":
        """A report's facts, which are of the type `summary`, as tables in the terminal."""

    async def run(self, config: C, do: Do, champion: Champion | None) -> R:
        """The whole run but its report. The final student meets the champion, and the gate decides."""
        return await self.challenge(config, await self.distill(config, do, champion), do, champion)

    async def challenge(self, config: C, result: R, do: Do, champion: Champion | None) -> R:
        """Add the champion's scores and the verdict; nothing without tracking, which has the registry to promote in."""
        if config.tracking is None:
            return result
        steps = self.evaluations(config, "champion", champion, result) if champion else ()
        scores = await together(do(step) for step in steps)
        gate = self.gate(config, result).model_copy(update={"reigning": scores})
        return result.model_copy(update={"champion": champion, "champion_scores": scores, "verdict": await do(gate)})


async def together(work: Iterable[Awaitable[ArtifactRef]]) -> tuple[ArtifactRef, ...]:
    """All of them at once. If one fails, the others still end and keep what they made; then its error is raised."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return tuple(outcome for outcome in outcomes if not isinstance(outcome, BaseException))
