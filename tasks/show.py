"""The report, shown on the flow run's page."""

import asyncio
import base64
from pathlib import Path

from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact

from retort.config import Config
from retort.records import ArtifactRef
from retort.report.summary import Summary, table
from retort.stages.making import open_store
from retort.stages.report import SUMMARY


async def show_report(config: Config, report: ArtifactRef) -> Summary:
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


def _data_uri(image: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
