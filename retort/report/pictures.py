"""The report's picture: scores with their intervals, one panel per metric or test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from retort.artifacts.reports import PNG, SVG
from retort.config import ERRORS
from retort.metrics.format import score_text

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
TEACHER, STAGE, FINAL, CHAMPION, BASELINE = "#8a6d3b", "#4c78a8", "#c2410c", "#7b5aa6", "#7a8691"


@dataclass(frozen=True)
class Dot:
    """A system's score, with its interval."""

    value: float
    low: float
    high: float
    color: str
    hollow: bool = False
    seeds: tuple[float, ...] = ()
    """The values behind the mean, drawn faintly."""


@dataclass(frozen=True)
class Panel:
    title: str
    metric: str
    dots: Sequence[Dot | None]
    """One per system; None if it has no score."""


def draw(panels: Sequence[Panel], names: Sequence[str], folder: Path) -> None:
    """Write `scores.png` and `scores.svg`. `names` are the systems' names."""
    style: Any = {"svg.hashsalt": "retort", "font.size": 10, "text.color": INK, "axes.labelcolor": INK}
    with matplotlib.rc_context(style):
        size = (1.6 + 3.0 * len(panels), 1.0 + 0.36 * len(names))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, panel in zip(axes, panels, strict=True):
            _draw_panel(place, panel)
        axes[0].set_yticks(range(len(names)), list(names))
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        FigureCanvasAgg(figure)
        figure.savefig(folder / PNG, dpi=160)
        figure.savefig(folder / SVG, metadata={"Date": None, "Creator": None})


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for place, dot in enumerate(panel.dots):
        if dot is not None:
            _draw_dot(axes, place, dot, panel.metric)
    axes.set_title(panel.title, fontsize=10, fontweight="bold", loc="left")
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[:].set_visible(False)


def _draw_dot(axes: Axes, place: int, dot: Dot, metric: str) -> None:
    scale = 1 if metric in ERRORS else 100
    for value in dot.seeds:
        axes.plot([scale * value], [place], "o", color=dot.color, alpha=0.3, markersize=4, markeredgewidth=0)
    ends = [scale * dot.low, scale * dot.high]
    axes.plot(ends, [place, place], color=dot.color, linewidth=2, solid_capstyle="round")
    inside = "white" if dot.hollow else dot.color
    axes.plot([scale * dot.value], [place], "o", color=dot.color, markerfacecolor=inside, markersize=7)
    at, above, text = (scale * dot.value, place), (0, 7), score_text(metric, dot.value)
    axes.annotate(text, at, above, textcoords="offset points", ha="center", fontsize=8, color=INK)
