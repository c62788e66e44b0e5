"""The report, and what a night did, shown on the flow run's page."""

import asyncio
import base64
import re
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact

from retort.config import MckdConfig
from retort.config.soft_label import SoftLabelConfig
from retort.data.changes import PoolDiff
from retort.recipes.execute import open_store
from retort.records.base import ArtifactRef, Performed
from retort.report.mckd.summary import Summary, table
from retort.report.soft_label.summary import ScoreSummary, read_score_summary
from retort.report.soft_label.summary import table as score_table
from retort.report.step import SUMMARY
from tasks.promotion import Judged


async def show_report(config: MckdConfig, report: ArtifactRef) -> Summary:
    """Publish the report as Prefect artifacts: markdown, table and image; returns what it says."""
    folder = await asyncio.to_thread(open_store(config.store).fetch, report)
    summary = Summary.model_validate_json((folder / SUMMARY).read_text())
    columns, rows = table(summary)
    await asyncio.gather(
        acreate_markdown_artifact((folder / "report.md").read_text(), key="report", description=summary.reason),
        acreate_table_artifact([dict(zip(columns, row, strict=True)) for row in rows], key="scores"),
        acreate_image_artifact(_data_uri(folder / "scores.png"), key="scores-by-stage"),
    )
    return summary


async def show_score_report(config: SoftLabelConfig, report: ArtifactRef) -> ScoreSummary:
    """The same for the score flow, a table for each test set."""
    folder = await asyncio.to_thread(open_store(config.store).fetch, report)
    summary = read_score_summary(folder)
    tables = {rows: score_table(summary, rows) for rows in summary.tests}
    await asyncio.gather(
        acreate_markdown_artifact((folder / "report.md").read_text(), key="report", description=summary.reason),
        *(
            acreate_table_artifact([dict(zip(columns, row, strict=True)) for row in cells], key=_key(rows))
            for rows, (columns, cells) in tables.items()
        ),
        acreate_image_artifact(_data_uri(folder / "scores.png"), key="scores-by-arm"),
    )
    return summary


def _key(rows: str) -> str:
    """Prefect takes lower-case letters, digits and dashes."""
    return f"scores-{re.sub('[^a-z0-9]+', '-', rows)}".strip("-")


async def show_night(config: MckdConfig, stages: Sequence[Performed], news: PoolDiff, judged: Judged | None) -> None:
    """Publish what was new, what was made, what was skipped and why, and what became of the champion."""
    made = [stage for stage in stages if stage.status == "MADE"]
    found = len(stages) - len(made)
    lines = [
        f"# {config.name}: {'nothing new' if not made else f'{len(made)} of {len(stages)} stages made'}",
        "",
        f"**Pool**: {news.new:,} new rows, {news.changed:,} changed, {news.gone:,} gone, {news.same:,} as before.",
        "",
        f"**Champion**: {judged.text if judged else 'no promotion was asked for, or the config has no registry.'}",
        "",
        f"**Skipped**: {found} stages, whose inputs and settings are those of an artifact in the store.",
    ]
    if made:
        lines += ["", "| made | seconds |", "| --- | --- |", *(f"| {one.name} | {one.seconds:.1f} |" for one in made)]
    await acreate_markdown_artifact("\n".join(lines), key="night", description=lines[0].removeprefix("# "))


def _data_uri(image: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
