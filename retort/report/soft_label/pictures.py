"""The pictures of a run: every arm's score with its interval over seeds, one panel per test set, then the mistakes of
the exported arm, and the course of the run."""

from pathlib import Path

from retort.artifacts.reports import Picture
from retort.metrics.format import percent
from retort.report.pictures.canvas import FINAL, STAGE, TEACHER
from retort.report.pictures.course import draw_costs, draw_losses, draw_timeline
from retort.report.pictures.quality import draw_errors, draw_reliability, draw_slices
from retort.report.pictures.scores import Dot, Panel, draw_scores
from retort.report.soft_label.summary import TEXTS, SoftLabelSummary


def draw_all(summary: SoftLabelSummary, folder: Path) -> list[Picture]:
    """Draw every picture that the run has facts for, in the order of the page."""
    pictures = _draw_arms(summary, folder)
    for rows in summary.tests:
        where = rows if len(summary.tests) > 1 else ""
        overall = summary.scores[summary.student["arm"]][rows].rows[summary.metric]
        pictures += draw_slices(summary.slices[rows], overall, folder, where)
        pictures += draw_reliability(summary.reliability[rows], folder, where, whole=False)
        pictures += draw_errors(summary.errors[rows], folder, where)
    return [
        *pictures,
        *draw_losses(summary.curves, folder),
        *draw_timeline(summary.spans, folder),
        *draw_costs(summary.arm_costs, folder),
    ]


def _draw_arms(summary: SoftLabelSummary, folder: Path) -> list[Picture]:
    arms = list(summary.scores)
    panels = [
        Panel(
            f"{rows}: {TEXTS[summary.metric]}",
            summary.metric,
            [_dot(summary, arm, rows) for arm in arms],
            _says(summary, rows),
        )
        for rows in summary.tests
    ]
    return draw_scores(panels, arms, folder)


def _says(summary: SoftLabelSummary, rows: str) -> str:
    arm, metric = summary.student["arm"], summary.metric
    scored = {name: by_rows[rows] for name, by_rows in summary.scores.items() if rows in by_rows}
    means = {name: one.metrics[metric].mean for name, one in scored.items() if one.metrics}
    best = max(means, key=lambda name: means[name])
    own = "" if best == arm else f"The exported student's arm, {arm}, has {percent(means[arm])}. "
    return (
        f"{best} is best with {percent(means[best])}. {own}A faint dot is a seed, a line the 95 % interval of the mean "
        "over seeds."
    )


def _dot(summary: SoftLabelSummary, arm: str, rows: str) -> Dot | None:
    scores = summary.scores[arm].get(rows)
    if scores is None or not scores.metrics:
        return None
    score = scores.metrics[summary.metric]
    color = TEACHER if arm == "teacher" else FINAL if arm == summary.student["arm"] else STAGE
    seeds = score.values if len(score.values) > 1 else ()
    return Dot(score.mean, score.low, score.high, color, seeds=seeds)
