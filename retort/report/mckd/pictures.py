"""The picture of a run: every system's scores, one panel per metric. Rejected stages are hollow."""

from pathlib import Path

from retort.metrics.format import TITLES
from retort.report.mckd.summary import MckdSummary, Role, SystemRow
from retort.report.pictures import BASELINE, CHAMPION, FINAL, STAGE, TEACHER, Dot, Panel, draw

COLORS: dict[Role, str] = {
    "teacher": TEACHER,
    "stage": STAGE,
    "final": FINAL,
    "champion": CHAMPION,
    "baseline": BASELINE,
}


def draw_scores(summary: MckdSummary, folder: Path) -> None:
    systems = [row for row in summary.systems if row.scores]
    panels = [Panel(TITLES[metric], metric, [_dot(row, metric) for row in systems]) for metric in summary.metrics]
    draw(panels, [_name(row) for row in systems], folder)


def _dot(row: SystemRow, metric: str) -> Dot:
    score = row.scores[metric]
    return Dot(score.value, score.low, score.high, COLORS[row.role], hollow=row.rejected)


def _name(row: SystemRow) -> str:
    if row.measured_on == "pool":
        return f"{row.name} (on the pool)"
    return f"{row.name} (rejected)" if row.rejected else row.name
