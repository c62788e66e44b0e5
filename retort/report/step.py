"""`report`: what a run did, in pictures and words, from its artifacts alone."""

from retort.config import MckdConfig
from retort.records.base import MckdResult, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

VERSION = 2
SUMMARY = "summary.json"


def report(config: MckdConfig, distilled: MckdResult) -> Step:
    """Made anew only if something that it reports on is new."""
    return Step(
        name="report",
        verb="report",
        version=VERSION,
        kind="reports",
        params={
            "name": config.name,
            "problem": config.problem.model_dump(mode="json"),
            "metrics": list(config.metrics),
            "config": config.model_dump(mode="json", exclude={"store", "tracking", "execution"}),
        },
        inputs={"all": tuple(distilled.refs())},
        knobs={"distilled": distilled.model_dump(mode="json")},
    )


def make_report(work: StepContext) -> StepOutput:
    """Writes `summary.json`, `report.html`, `report.md`, `scores.png` and `scores.svg`."""
    # Only the worker that makes a report needs matplotlib and jinja2; a plan does not.
    from retort.report.mckd.facts import gather
    from retort.report.mckd.pictures import draw_scores
    from retort.report.pages import write_pages

    summary = gather(work)
    (work.folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    draw_scores(summary, work.folder)
    write_pages(summary, work.folder)
    metrics = {f"final_{metric}": score.value for metric, score in summary.final.scores.items()}
    return StepOutput(
        rows=len(summary.systems),
        metrics={**metrics, "compute_seconds": summary.compute_seconds},
        details={"reason": summary.reason, "kept_stage": summary.kept_stage},
    )
