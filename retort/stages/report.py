"""`report`: what a run did, in pictures and words, from its artifacts alone."""

from retort.config import Config
from retort.records import Distilled, Stage
from retort.stages.work import Work
from retort.store import Product

VERSION = 2
SUMMARY = "summary.json"


def report(config: Config, distilled: Distilled) -> Stage:
    """Made anew only if something that it reports on is new."""
    return Stage(
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


def make_report(work: Work) -> Product:
    """Writes `summary.json`, `report.html`, `report.md`, `scores.png` and `scores.svg`."""
    # Only the worker that makes a report needs matplotlib and jinja2; a plan does not.
    from retort.report.facts import gather
    from retort.report.pages import write_pages
    from retort.report.pictures import draw_scores

    summary = gather(work)
    (work.folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    draw_scores(summary, work.folder)
    write_pages(summary, work.folder)
    metrics = {f"final_{metric}": score.value for metric, score in summary.final.scores.items()}
    return Product(
        rows=len(summary.systems),
        metrics={**metrics, "compute_seconds": summary.compute_seconds},
        details={"reason": summary.reason, "kept_stage": summary.kept_stage},
    )
