"""The soft-label recipe's report."""

from pathlib import Path

from retort.problems import problem_for
from retort.problems.classification import Classification
from retort.records.soft_label import SoftLabelResult
from retort.report.soft_label.facts import Run, gather
from retort.report.soft_label.summary import ARMS, TEXTS, SoftLabelSummary, cost_table, table
from retort.report.step import ReportStep
from retort.steps.base import Runtime
from retort.steps.context import StepContext
from retort.store import StepOutput

GROUPS_SHOWN = 10
"""How many of the questions that the exported arm scores worst are shown."""


class ReportSoftLabel(ReportStep):
    kind = "report-scores"
    version = 2

    seeds: int
    seed: int
    resamples: int
    result: Runtime[SoftLabelResult]

    def gather(self, context: StepContext) -> SoftLabelSummary:
        run = Run(self.result, context.store, self.resamples, self.seed)
        problem = problem_for(self.problem)
        assert isinstance(problem, Classification), "the recipe is for classes only"
        return gather(run, self.config, problem, self.metrics)

    def write(self, summary: SoftLabelSummary, folder: Path) -> None:
        # A plan needs neither matplotlib nor jinja2, only the worker that makes the report does.
        from retort.report.pages import write_pages
        from retort.report.soft_label.pictures import draw_all

        pictures = draw_all(summary, folder)
        facts = {
            "tables": {rows: table(summary, rows) for rows in ("dev", *summary.tests)},
            "costs": cost_table(summary),
            "arms": ARMS,
            "texts": TEXTS,
            "groups_shown": GROUPS_SHOWN,
        }
        write_pages(summary, folder, "soft_label", pictures, **facts)

    def output(self, summary: SoftLabelSummary) -> StepOutput:
        arm = summary.student["arm"]
        metrics = {
            f"{rows}_{summary.metric}": summary.scores[arm][rows].metrics[summary.metric].mean for rows in summary.tests
        }
        return StepOutput(
            rows=len(summary.scores),
            metrics={**metrics, "compute_seconds": summary.compute_seconds},
            details={"reason": summary.reason},
        )
