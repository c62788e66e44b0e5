"""The report's picture: every arm's accuracy with its interval, one panel for each test set."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from retort.report.mckd.pictures import GRID, INK, MUTED, PNG, SVG
from retort.report.mckd.summary import percent
from retort.report.soft_label.summary import TEXTS, ScoreSummary

TEACHER, STUDENT, OTHER = "#8a6d3b", "#c2410c", "#4c78a8"


def draw_arms(summary: ScoreSummary, folder: Path) -> None:
    """Write `scores.png` and `scores.svg`: a dot for each seed, the mean over them with its interval."""
    style: Any = {"svg.hashsalt": "retort", "font.size": 10, "text.color": INK, "axes.labelcolor": INK}
    arms = list(summary.scores)
    with matplotlib.rc_context(style):
        size = (1.6 + 3.0 * len(summary.tests), 1.0 + 0.36 * len(arms))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))
        panels = figure.subplots(1, len(summary.tests), sharey=True, squeeze=False)[0]
        for panel, rows in zip(panels, summary.tests, strict=True):
            _draw_panel(panel, summary, rows, arms)
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].set_ylim(len(arms) - 0.5, -0.5)
        FigureCanvasAgg(figure)
        figure.savefig(folder / PNG, dpi=160)
        figure.savefig(folder / SVG, metadata={"Date": None, "Creator": None})


def _draw_panel(panel: Axes, summary: ScoreSummary, rows: str, arms: list[str]) -> None:
    for place, arm in enumerate(arms):
        scores = summary.scores[arm].get(rows)
        if scores is None or not scores.metrics:
            continue
        score = scores.metrics[summary.metric]
        color = TEACHER if arm == "teacher" else STUDENT if arm == summary.student["arm"] else OTHER
        for value in score.values if len(score.values) > 1 else ():
            panel.plot([100 * value], [place], "o", color=color, alpha=0.3, markersize=4, markeredgewidth=0)
        panel.plot([100 * score.low, 100 * score.high], [place, place], color=color, linewidth=2)
        panel.plot([100 * score.mean], [place], "o", color=color, markersize=7)
        at = (100 * score.mean, place)
        panel.annotate(percent(score.mean), at, (0, 7), textcoords="offset points", ha="center", fontsize=8, color=INK)
    panel.set_title(f"{rows}: {TEXTS[summary.metric]}", fontsize=10, fontweight="bold", loc="left")
    panel.grid(axis="x", color=GRID)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, colors=MUTED)
    panel.tick_params(axis="y", labelcolor=INK)
    panel.margins(x=0.12)
    panel.locator_params(axis="x", nbins=5)
    panel.spines[:].set_visible(False)
