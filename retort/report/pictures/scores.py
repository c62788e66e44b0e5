"""Scores with their intervals: every system on one axis per metric or test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from retort.artifacts.reports import SCORES, Picture
from retort.config import ERRORS
from retort.metrics.format import TITLES, score_text
from retort.report.pictures.canvas import GRID, INK, drawn, figure_of, plain


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
    says: str = ""


def draw_scores(panels: Sequence[Panel], names: Sequence[str], folder: Path) -> list[Picture]:
    """Write all panels side by side as `scores.png` and `.svg`, and each as a picture of its own for narrow pages.
    `names` are the systems' names."""
    height = 1.1 + 0.34 * len(names)
    with figure_of(folder, SCORES, (1.6 + 3.0 * len(panels), height)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, panel in zip(axes, panels, strict=True):
            plain(place)
            place.set_title(panel.title, fontsize=10, fontweight="bold", loc="left")
            _draw_panel(place, panel)
        _name_rows(axes[0], names)
    pictures = []
    for number, panel in enumerate(panels):
        picture = Picture(key=f"{SCORES}-{number}", title=panel.title, says=panel.says, in_overview=True)
        with drawn(folder, picture, height) as place:
            _draw_panel(place, panel)
            _name_rows(place, names)
        pictures.append(picture)
    return pictures


def unit_of(metric: str) -> str:
    """What an axis of the metric's values is labeled with."""
    return f"{TITLES.get(metric, metric)}, {'in the unit of the labels' if metric in ERRORS else 'percent'}"


def scale_of(metric: str) -> int:
    """What values are multiplied by to be drawn."""
    return 1 if metric in ERRORS else 100


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.7)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for place, dot in enumerate(panel.dots):
        if dot is not None:
            _draw_dot(axes, place, dot, panel.metric)
    axes.set_xlabel(unit_of(panel.metric))
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)


def _draw_dot(axes: Axes, place: int, dot: Dot, metric: str) -> None:
    scale = scale_of(metric)
    for value in dot.seeds:
        axes.plot([scale * value], [place], "o", color=dot.color, alpha=0.3, markersize=4, markeredgewidth=0)
    ends = [scale * dot.low, scale * dot.high]
    axes.plot(ends, [place, place], color=dot.color, linewidth=2, solid_capstyle="round")
    inside = "white" if dot.hollow else dot.color
    axes.plot([scale * dot.value], [place], "o", color=dot.color, markerfacecolor=inside, markersize=7)
    at, above, text = (scale * dot.value, place), (0, 6), score_text(metric, dot.value)
    axes.annotate(text, at, above, textcoords="offset points", ha="center", fontsize=8, color=INK)
