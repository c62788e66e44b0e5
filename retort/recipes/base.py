"""The base class of recipes. A recipe is one way to get from a config to a promoted student."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from retort.config import ExecutionConfig, RecipeConfig
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
T = TypeVar("T")
U = TypeVar("U")
Do = Callable[[Step], Awaitable[ArtifactRef]]
"""Makes a step's artifact or finds it. `retort plan` passes a function that only looks into the store."""
DoctorCheck = Callable[[Any], str]
"""One check of `retort doctor`. Takes the config; returns what it found (`note: ...` for a remark) or raises."""


class Recipe(ABC, Generic[C, R]):
    """Everything that distinguishes one method from another; runs, plans, nights and reports are the same for all.

    `distill` builds the steps, in order, and `do` carries them out. A new recipe is a subclass of this class and an
    entry in `retort.recipes.RECIPES`.
    """

    kind: ClassVar[str]
    """`kind` at the top of the YAML file."""
    former_kinds: ClassVar[tuple[str, ...]] = ()
    """Older values of `kind` that are still accepted."""
    config: type[C]
    summary: type[Summary]
    """The type of a report's facts."""

    @abstractmethod
    def resolve(self, config: C) -> C:
        """Return the config with the problem's schema filled in from the data, if it has none. Reads sources."""

    @abstractmethod
    def check(self, config: C) -> C:
        """Run every cheap check. Returns the resolved config and leaves its data in the store.

        Raises ConfigError, DataError or StoreUnavailable.
        """

    @abstractmethod
    def teacher_facts(self, config: C) -> dict[str, Any]:
        """What a plan reports about the teacher besides its cost: `kind`, and where recorded labels come from."""

    @abstractmethod
    def pools(self, config: C) -> tuple[str, ...]:
        """Roles (`ingest/ROLE`) of the rows that grow from night to night."""

    @abstractmethod
    def doctor_checks(self, config: C) -> Mapping[str, DoctorCheck]:
        """The checks of `retort doctor`, by name, in addition to versions, store and tracking."""

    @abstractmethod
    async def distill(self, config: C, do: Do, champion: Champion | None) -> R:
        """Make the final student and everything that it is compared with, except the champion's scores."""

    @abstractmethod
    def evaluations(self, config: C, name: str, champion: Champion, result: R) -> Iterable[EvaluateStudent]:
        """The steps that score the champion, on the rows of `result.test_scores` and in the same order."""

    @abstractmethod
    def gate(self, config: C, result: R) -> Gate:
        """The gate that checks the final student. `challenge` fills in `reigning`."""

    @abstractmethod
    def report(self, config: C, result: R) -> ReportStep:
        """The report, which is made again only if something that it covers is new."""

    @abstractmethod
    def track(self, config: C, result: R, page: ArtifactRef, origin: Mapping[str, str]) -> Track:
        """The step that logs the run to MLflow. `origin` says where the run comes from. Needs `config.tracking`."""

    @abstractmethod
    def render(self, summary: Any, width: int) -> "RenderableType":
        """Render a report's facts, which have the type `summary`, as tables for a terminal of `width` columns."""

    async def run(self, config: C, do: Do, champion: Champion | None) -> R:
        """The whole run except its report: distill, compare the final student with the champion, and run the gate."""
        return await self.challenge(config, await self.distill(config, do, champion), do, champion)

    async def challenge(self, config: C, result: R, do: Do, champion: Champion | None) -> R:
        """Add the champion's scores and the verdict. Without tracking there is no registry to promote in, so neither is
        added."""
        if config.tracking is None:
            return result
        steps = self.evaluations(config, "champion", champion, result) if champion else ()
        scores = await together(do(step) for step in steps)
        gate = self.gate(config, result).model_copy(update={"reigning": scores})
        return result.model_copy(update={"champion": champion, "champion_scores": scores, "verdict": await do(gate)})


def halved(do: Do, execution: ExecutionConfig) -> Do:
    """A `do` each of whose steps gets half of a CPU's cores, or less beside its siblings. For steps beside which others
    of about the same length can run: two trainings side by side with half of the cores each take less time than one
    after the other with all. Not where the config lets only one student train at a time."""
    if execution.parallel_students == 1:
        return do
    return lambda step: do(step.model_copy(update={"shares": 2}))


def later(do: Do) -> Do:
    """A `do` for what only the end of the run waits for: its steps take the places that other steps leave free."""
    return lambda step: do(step.model_copy(update={"is_urgent": False}))


IN_ORDER: ContextVar[bool] = ContextVar("IN_ORDER", default=False)
"""Set while a plan goes through a run: its steps are listed in the order of the code."""


async def together(steps: Iterable[Awaitable[T]]) -> tuple[T, ...]:
    """Run all steps concurrently. If one fails, the others still finish, then its error is raised."""
    if IN_ORDER.get():
        return tuple([await step for step in steps])
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return tuple(outcome for outcome in outcomes if not isinstance(outcome, BaseException))


class Aside:
    """Work beside the run, which awaits its results when it needs them. What is still going on at the end of the block,
    because the run failed, is stopped."""

    def __init__(self) -> None:
        self._begun: list[asyncio.Future[Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for work in self._begun:
            work.cancel()
        await asyncio.gather(*self._begun, return_exceptions=True)

    async def begin(self, work: Awaitable[T]) -> "asyncio.Future[T]":
        """Begin the work; returns its result to come."""
        begun = asyncio.ensure_future(work)
        self._begun.append(begun)
        if IN_ORDER.get():
            await begun
        return begun


async def beside(main: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Run both concurrently. If `main` fails, the other is stopped; if the other fails, `main` still finishes."""
    if IN_ORDER.get():
        with contextlib.closing(other):
            return await main, await other
    first, second = asyncio.ensure_future(main), asyncio.ensure_future(other)
    try:
        return await first, await second
    finally:
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
