"""The picture of a run: every arm's score with its interval over seeds, one panel per test set."""

from pathlib import Path

from retort.report.pictures import FINAL, STAGE, TEACHER, Dot, Panel, draw
from retort.report.soft_label.summary import TEXTS, SoftLabelSummary


def draw_arms(summary: SoftLabelSummary, folder: Path) -> None:
    arms = list(summary.scores)
    panels = [
        Panel(f"{rows}: {TEXTS[summary.metric]}", summary.metric, [_dot(summary, arm, rows) for arm in arms])
        for rows in summary.tests
    ]
    draw(panels, arms, folder)


def _dot(summary: SoftLabelSummary, arm: str, rows: str) -> Dot | None:
    scores = summary.scores[arm].get(rows)
    if scores is None or not scores.metrics:
        return None
    score = scores.metrics[summary.metric]
    color = TEACHER if arm == "teacher" else FINAL if arm == summary.student["arm"] else STAGE
    seeds = score.values if len(score.values) > 1 else ()
    return Dot(score.mean, score.low, score.high, color, seeds=seeds)
