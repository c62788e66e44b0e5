"""The pictures of a run: every system's scores, one panel per metric, then the course of the run and its mistakes."""

from pathlib import Path

from retort.artifacts.reports import Picture
from retort.config import ERRORS, Metric
from retort.metrics.format import TITLES, with_interval
from retort.report.mckd.stage_pictures import draw_label_flow, draw_learning_curve
from retort.report.mckd.summary import MckdSummary, Role, SystemRow
from retort.report.pictures.canvas import BASELINE, CHAMPION, FINAL, STAGE, TEACHER
from retort.report.pictures.course import draw_costs, draw_losses, draw_timeline
from retort.report.pictures.quality import draw_errors, draw_reliability, draw_slices
from retort.report.pictures.scores import Dot, Panel, draw_scores

COLORS: dict[Role, str] = {
    "teacher": TEACHER,
    "stage": STAGE,
    "final": FINAL,
    "champion": CHAMPION,
    "baseline": BASELINE,
}


def draw_all(summary: MckdSummary, folder: Path) -> list[Picture]:
    """Draw every picture that the run has facts for, in the order of the page."""
    return [
        *_draw_systems(summary, folder),
        *draw_learning_curve(summary, folder),
        *draw_label_flow(summary, folder),
        *draw_reliability(summary.reliability["test"], folder, whole=summary.problem != "classification"),
        *draw_errors(summary.errors, folder),
        *draw_slices(summary.slices["test"], summary.final.scores[summary.metric], folder),
        *draw_losses(summary.curves, folder),
        *draw_timeline(summary.spans, folder),
        *draw_costs(summary.arm_costs, folder),
    ]


def _draw_systems(summary: MckdSummary, folder: Path) -> list[Picture]:
    systems = [row for row in summary.systems if row.scores]
    panels = [
        Panel(TITLES[metric], metric, [_dot(row, metric) for row in systems], _says(summary, systems, metric))
        for metric in summary.metrics
    ]
    return draw_scores(panels, [_name(row) for row in systems], folder)


def _says(summary: MckdSummary, systems: list[SystemRow], metric: Metric) -> str:
    choose = min if metric in ERRORS else max
    best = choose((row for row in systems if row.measured_on == "test"), key=lambda row: row.scores[metric].value)
    told = f"On the test rows {best.name} is best: {with_interval(best.scores[metric])}. "
    if best.role != "final":
        told += f"The final student has {with_interval(summary.final.scores[metric])}. "
    hollow = " A hollow dot is a rejected stage." if any(row.rejected for row in systems) else ""
    return (
        f"{told}A line is the 95 % interval over rows; where two lines overlap widely, chance may have decided.{hollow}"
    )


def _dot(row: SystemRow, metric: str) -> Dot:
    score = row.scores[metric]
    return Dot(score.value, score.low, score.high, COLORS[row.role], hollow=row.rejected)


def _name(row: SystemRow) -> str:
    if row.measured_on == "pool":
        return f"{row.name} (on the pool)"
    return f"{row.name} (rejected)" if row.rejected else row.name
