"""The MCKD recipe: multistage collaborative knowledge distillation from a teacher that writes or chooses labels."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from retort.config import MckdConfig
from retort.recipes.base import Do, DoctorCheck, Recipe
from retort.recipes.mckd import checks, steps
from retort.recipes.mckd.nights import Night, last_night
from retort.recipes.mckd.pipeline import distill, ingest_data
from retort.records.base import ArtifactRef
from retort.records.mckd import MckdResult
from retort.records.result import Champion
from retort.report.mckd.step import ReportMckd
from retort.report.mckd.summary import MckdSummary
from retort.steps.evaluate import EvaluateStudent
from retort.steps.gate import Gate
from retort.tracking.mckd import TrackMckd

if TYPE_CHECKING:
    from rich.console import RenderableType


class MckdRecipe(Recipe[MckdConfig, MckdResult]):
    kind = "mckd"
    config = MckdConfig
    summary = MckdSummary

    def resolve(self, config: MckdConfig) -> MckdConfig:
        return checks.resolve(config)

    def check(self, config: MckdConfig) -> MckdConfig:
        return checks.check(config)

    def teacher_facts(self, config: MckdConfig) -> dict[str, Any]:
        return config.teacher.model_dump(include={"kind", "completions"})

    def pools(self, config: MckdConfig) -> tuple[str, ...]:
        return ("unlabeled",)

    def doctor_checks(self, config: MckdConfig) -> Mapping[str, DoctorCheck]:
        return checks.doctor_checks(config)

    async def distill(self, config: MckdConfig, do: Do, champion: Champion | None) -> MckdResult:
        result = await distill(config, await ingest_data(config, do), do, champion)
        last = last_night(config, Night(result.data.unlabeled, result.labels[0]))
        return result.model_copy(update={"hygiene": await do(steps.hygiene(config, result, last))})

    def evaluations(
        self, config: MckdConfig, name: str, champion: Champion, result: MckdResult
    ) -> Iterable[EvaluateStudent]:
        rows = result.data.test
        return [steps.evaluate_student(config, f"{name}/test", champion.student, rows, champion=champion)]

    def gate(self, config: MckdConfig, result: MckdResult) -> Gate:
        return steps.gate(config, result)

    def report(self, config: MckdConfig, result: MckdResult) -> ReportMckd:
        return steps.report(config, result)

    def track(self, config: MckdConfig, result: MckdResult, page: ArtifactRef, origin: Mapping[str, str]) -> TrackMckd:
        return steps.track(config, result, page, origin)

    def render(self, summary: MckdSummary, width: int) -> "RenderableType":
        from retort.report.mckd.terminal import render_terminal

        return render_terminal(summary, width)
