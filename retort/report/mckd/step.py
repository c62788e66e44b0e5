"""The MCKD recipe's report."""

from pathlib import Path

from retort.config import MckdConfig
from retort.problems import problem_for
from retort.records.mckd import MckdResult
from retort.report.mckd.facts import Run, gather
from retort.report.mckd.summary import MckdSummary, table
from retort.report.step import ReportStep
from retort.steps.base import Runtime
from retort.steps.context import StepContext
from retort.store import StepOutput

ORDERS = {
    "old-label-probability": "the students found the old label least probable",
    "parts-changed": "most parts of the label changed, then by confidence",
}


class ReportMckd(ReportStep):
    kind = "report"
    version = 4

    result: Runtime[MckdResult]

    def gather(self, context: StepContext) -> MckdSummary:
        config = MckdConfig.model_validate(self.config)
        return gather(Run(config, problem_for(self.problem), self.result, context.store), context.progress)

    def write(self, summary: MckdSummary, folder: Path) -> None:
        # A plan needs neither matplotlib nor jinja2, only the worker that makes the report does.
        from retort.report.mckd.pictures import draw_scores
        from retort.report.pages import write_pages

        draw_scores(summary, folder)
        write_pages(summary, folder, "mckd", table=table(summary), orders=ORDERS)

    def output(self, summary: MckdSummary) -> StepOutput:
        metrics = {f"final_{metric}": score.value for metric, score in summary.final.scores.items()}
        return StepOutput(
            rows=len(summary.systems),
            metrics={**metrics, "compute_seconds": summary.compute_seconds},
            details={"reason": summary.reason, "kept_stage": summary.kept_stage},
        )
