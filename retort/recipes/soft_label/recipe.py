"""The soft-label recipe: distill a classifier's probabilities into a tiny student."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from retort.config.soft_label import SoftLabelConfig
from retort.recipes.base import Do, DoctorCheck, Recipe
from retort.recipes.soft_label import checks, steps
from retort.recipes.soft_label.pipeline import distill
from retort.records.base import ArtifactRef
from retort.records.result import Champion
from retort.records.soft_label import SoftLabelResult
from retort.report.soft_label.step import ReportSoftLabel
from retort.report.soft_label.summary import SoftLabelSummary
from retort.steps.evaluate import EvaluateStudent
from retort.steps.gate import Gate
from retort.tracking.soft_label import TrackSoftLabel

if TYPE_CHECKING:
    from rich.console import RenderableType


class SoftLabelRecipe(Recipe[SoftLabelConfig, SoftLabelResult]):
    """Tonight's students never start from the champion: each has the vocabulary of its own night's training texts."""

    kind = "soft-label"
    former_kinds = ("score",)
    config = SoftLabelConfig
    summary = SoftLabelSummary

    def resolve(self, config: SoftLabelConfig) -> SoftLabelConfig:
        return checks.resolve(config)

    def check(self, config: SoftLabelConfig) -> SoftLabelConfig:
        return checks.check(config)

    def teacher_facts(self, config: SoftLabelConfig) -> dict[str, Any]:
        return config.teacher.model_dump(include={"kind"})

    def pools(self, config: SoftLabelConfig) -> tuple[str, ...]:
        return ("train", "unlabeled") if "with-pool" in config.arms else ("train",)

    def doctor_checks(self, config: SoftLabelConfig) -> Mapping[str, DoctorCheck]:
        return checks.doctor_checks(config)

    async def distill(self, config: SoftLabelConfig, do: Do, champion: Champion | None) -> SoftLabelResult:
        return await distill(config, do, champion)

    def evaluations(
        self, config: SoftLabelConfig, name: str, champion: Champion, result: SoftLabelResult
    ) -> Iterable[EvaluateStudent]:
        return [
            steps.evaluate(config, f"{name}/{test}", champion.student, rows, champion)
            for test, rows in result.tests.items()
        ]

    def gate(self, config: SoftLabelConfig, result: SoftLabelResult) -> Gate:
        return steps.gate(config, result)

    def report(self, config: SoftLabelConfig, result: SoftLabelResult) -> ReportSoftLabel:
        return steps.report(config, result)

    def track(
        self, config: SoftLabelConfig, result: SoftLabelResult, page: ArtifactRef, origin: Mapping[str, str]
    ) -> TrackSoftLabel:
        return steps.track(config, result, page, origin)

    def render(self, summary: SoftLabelSummary, width: int) -> "RenderableType":
        from retort.report.soft_label.terminal import render_terminal

        return render_terminal(summary, width)
