"""`report-scores`: what a run of the score flow did, in pictures and words, from its artifacts alone."""

from retort.config.soft_label import SoftLabelConfig
from retort.records.base import SoftLabelResult, Step
from retort.report.step import SUMMARY
from retort.steps.context import StepContext
from retort.store import StepOutput

VERSION = 1


def report_scores(config: SoftLabelConfig, scored: SoftLabelResult) -> Step:
    """Made anew only if something that it reports on is new."""
    return Step(
        name="report",
        verb="report-scores",
        version=VERSION,
        kind="reports",
        params={
            "name": config.name,
            "problem": config.problem.model_dump(mode="json"),
            "metrics": list(config.metrics),
            "seeds": config.grid.seeds,
            "seed": config.seed,
            "resamples": config.resamples,
            "config": config.model_dump(mode="json", exclude={"store", "tracking", "execution"}),
        },
        inputs={"all": tuple(scored.refs())},
        knobs={"scored": scored.model_dump(mode="json")},
    )


def make_score_report(work: StepContext) -> StepOutput:
    """Writes `summary.json`, `report.html`, `report.md`, `scores.png` and `scores.svg`."""
    # Only the worker that makes a report needs matplotlib and jinja2; a plan does not.
    from retort.report.soft_label.facts import gather_scores
    from retort.report.soft_label.pages import write_score_pages
    from retort.report.soft_label.pictures import draw_arms

    summary = gather_scores(work)
    (work.folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    draw_arms(summary, work.folder)
    write_score_pages(summary, work.folder)
    arm = summary.student["arm"]
    metrics = {
        f"{rows}_{summary.metric}": summary.scores[arm][rows].metrics[summary.metric].mean for rows in summary.tests
    }
    return StepOutput(
        rows=len(summary.scores),
        metrics={**metrics, "compute_seconds": summary.compute_seconds},
        details={"reason": summary.reason},
    )
