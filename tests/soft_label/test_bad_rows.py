"""Rows of the pool that cannot be used, in the soft-label recipe."""

import asyncio
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from retort.artifacts.reports import Report
from retort.recipes.execute import made_or_found
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.pipeline import distill
from retort.recipes.soft_label.steps import report
from retort.records.base import ArtifactRef
from retort.report.soft_label.summary import SoftLabelSummary
from retort.report.soft_label.terminal import render_terminal
from retort.steps.base import Step
from retort.store.opening import open_store
from retort.tracking.logging import set_aside_points


def test_they_are_counted_in_report_terminal_and_tracking(job: Any) -> None:
    path = Path(job.values["data"]["unlabeled"])
    rows = path.read_text().splitlines()
    broken = ["{", json.dumps({**json.loads(rows[1]), "id": "x", "answer": 5, "group": [1]}), rows[0]]
    path.write_text("\n".join([*rows, *broken]) + "\n")
    job.values["data"]["max_bad_share"] = 0.2
    job.values["arms"] = ["hard", "with-pool"]
    job.values["student"]["training"]["epochs"] = 1
    job.values["grid"] = {"lambda": [1], "distillation_temperature": [1], "seeds": 2}
    config = check(job.config())

    async def do(step: Step) -> ArtifactRef:
        return made_or_found(config, step)

    result = asyncio.run(distill(config, do))
    assert result.pool is not None
    assert result.pool.rows == len(rows)
    page = Report.open(open_store(config.store), made_or_found(config, report(config, result)))
    summary = page.summary(SoftLabelSummary)
    assert summary.set_aside is not None
    assert summary.set_aside.reasons == {"duplicate-id": 1, "not-json": 1, "not-text": 1}
    told = (
        f"3 of {len(rows) + 3} rows ({3 / (len(rows) + 3):.2%}) cannot be used: duplicate-id 1, not-json 1, not-text 1"
    )
    html = (page.folder / "report.html").read_text()
    console = Console(width=400)
    with console.capture() as shown:
        console.print(render_terminal(summary, console.width))
    for text in (page.markdown, html, shown.get()):
        assert told in text
    assert f"line {len(rows) + 1}: not JSON" in page.markdown
    points = {point.metric: point.value for point in set_aside_points(summary)}
    assert points == {
        "rows_set_aside": 3,
        "rows_set_aside_duplicate_id": 1,
        "rows_set_aside_not_json": 1,
        "rows_set_aside_not_text": 1,
    }
