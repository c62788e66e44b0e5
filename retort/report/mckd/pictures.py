"""The report's picture: scores with their intervals, one panel for each metric."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from retort.report.mckd.summary import TITLES, Role, Summary, SystemRow, percent

PNG, SVG = "scores.png", "scores.svg"
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
COLORS: dict[Role, str] = {
    "teacher": "#8a6d3b",
    "stage": "#4c78a8",
    "final": "#c2410c",
    "champion": "#7b5aa6",
    "baseline": "#7a8691",
}


def draw_scores(summary: Summary, folder: Path) -> None:
    """Write `scores.png` and `scores.svg`: a dot and a 95 % interval for each system, hollow where rejected."""
    systems = [row for row in summary.systems if row.scores]
    style: Any = {"svg.hashsalt": "retort", "font.size": 10, "text.color": INK, "axes.labelcolor": INK}
    with matplotlib.rc_context(style):
        height = 1.0 + 0.36 * len(systems)
        figure = Figure(figsize=(1.6 + 3.0 * len(summary.metrics), height), layout=ConstrainedLayoutEngine(wspace=0.06))
        panels = figure.subplots(1, len(summary.metrics), sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, summary.metrics, strict=True):
            _draw_panel(panel, metric, systems)
        panels[0].set_yticks(range(len(systems)), [_name(row) for row in systems])
        panels[0].set_ylim(len(systems) - 0.5, -0.5)
        FigureCanvasAgg(figure)
        figure.savefig(folder / PNG, dpi=160)
        figure.savefig(folder / SVG, metadata={"Date": None, "Creator": None})


def _draw_panel(panel: Axes, metric: str, systems: list[SystemRow]) -> None:
    for place, row in enumerate(systems):
        score, color = row.scores[metric], COLORS[row.role]
        panel.plot(
            [100 * score.low, 100 * score.high], [place, place], color=color, linewidth=2, solid_capstyle="round"
        )
        hollow = "white" if row.rejected else color
        panel.plot([100 * score.value], [place], "o", color=color, markerfacecolor=hollow, markersize=7)
        panel.annotate(
            percent(score.value),
            (100 * score.value, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    panel.set_title(TITLES[metric], fontsize=10, fontweight="bold", loc="left")
    panel.grid(axis="x", color=GRID)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, colors=MUTED)
    panel.tick_params(axis="y", labelcolor=INK)
    panel.margins(x=0.12)
    panel.locator_params(axis="x", nbins=5)
    panel.spines[:].set_visible(False)


def _name(row: SystemRow) -> str:
    if row.measured_on == "pool":
        return f"{row.name} (on the pool)"
    return f"{row.name} (rejected)" if row.rejected else row.name
