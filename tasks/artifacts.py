"""Shows the report and a summary of the night on the flow run's page."""

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact

from retort.artifacts.reports import SCORES, Report
from retort.config import RunSettings
from retort.data.changes import PoolDiff
from retort.records.base import ArtifactRef, Performed
from retort.report.base import Summary
from retort.store.opening import open_store
from tasks.promotion import PromotionResult

_ALL_ARMS = "Scores of all arms, with 95 % intervals; the report says what each arm is."


async def show_report(settings: RunSettings, page: ArtifactRef, form: type[Summary]) -> Summary:
    """Publish the report as Prefect artifacts: Markdown, tables and pictures. Returns its facts, parsed as `form`."""
    report = await asyncio.to_thread(Report.open, open_store(settings.store), page)
    summary = report.summary(form)
    await asyncio.gather(
        acreate_markdown_artifact(report.markdown, key="report", description=summary.headline),
        *(
            acreate_table_artifact(
                [dict(zip(table.columns, row, strict=True)) for row in table.rows], key=key, description=_ALL_ARMS
            )
            for key, table in summary.tables().items()
        ),
        acreate_image_artifact(_data_uri(report.png(SCORES)), key=summary.picture_key, description=_ALL_ARMS),
        *(
            acreate_image_artifact(_data_uri(report.png(one.key)), key=one.key, description=f"{one.title}. {one.says}")
            for one in report.pictures()
            if not one.in_overview
        ),
    )
    return summary


async def show_night(
    settings: RunSettings, steps: Sequence[Performed], changes: dict[str, PoolDiff], result: PromotionResult | None
) -> None:
    """Publish what was new, made and skipped, and what happened to the champion. `changes` has an entry for each role
    whose rows the teacher labels."""
    made = [step for step in steps if step.status == "MADE"]
    found = len(steps) - len(made)
    lines = [
        f"# {settings.name}: {'nothing new' if not made else f'{len(made)} of {len(steps)} stages made'}",
        "",
        *(line for role, diff in changes.items() for line in (f"**{_title(role)}**: {_sentence(diff)}", "")),
        f"**Champion**: {result.text if result else 'no promotion was asked for, or the config has no registry.'}",
        "",
        f"**Skipped**: {found} stages, whose inputs and settings are those of an artifact in the store.",
    ]
    if made:
        lines += ["", "| made | seconds |", "| --- | --- |", *(f"| {one.name} | {one.seconds:.1f} |" for one in made)]
    await acreate_markdown_artifact("\n".join(lines), key="night", description=lines[0].removeprefix("# "))


def _title(role: str) -> str:
    return "Pool" if role == "unlabeled" else f"Rows of {role}"


def _sentence(diff: PoolDiff) -> str:
    return f"{diff.new:,} new rows, {diff.changed:,} changed, {diff.gone:,} gone, {diff.same:,} as before."


def _data_uri(image: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
