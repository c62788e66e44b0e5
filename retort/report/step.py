"""`report`: shows what a run did, in pictures and words, from its artifacts alone."""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from retort.artifacts.reports import Report, write_summary
from retort.config import Metric, Problem
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput


class ReportStep(Step):
    """Report on the run."""

    artifact = Report

    job: Annotated[str, Field(serialization_alias="name")]
    """The config's name."""
    problem: Problem
    metrics: tuple[Metric, ...]
    config: dict[str, Any]
    """The part of the config that shapes the result, see `RecipeConfig.as_reported`."""
    all: tuple[ArtifactRef, ...]
    """Every artifact that the report covers."""

    def run(self, context: StepContext) -> StepOutput:
        summary = self.gather(context)
        write_summary(context.folder, summary)
        self.write(summary, context.folder)
        return self.output(summary)

    @abstractmethod
    def gather(self, context: StepContext) -> Any:
        """Gather the run's facts. Raises DamagedArtifact if an artifact of the run is gone."""

    @abstractmethod
    def write(self, summary: Any, folder: Path) -> None:
        """Write pictures and pages into `folder`."""

    @abstractmethod
    def output(self, summary: Any) -> StepOutput: ...
