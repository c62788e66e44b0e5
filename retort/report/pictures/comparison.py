"""The picture of a comparison: how much better B is than A, by metric."""

from pathlib import Path

from retort.artifacts.reports import Picture
from retort.config import ERRORS
from retort.metrics.format import TITLES
from retort.report.comparison import Comparison, Difference, axis_values, plain_scores
from retort.report.pictures.canvas import BAD, BASELINE, GOOD, GRID, INK, MUTED, drawn, named


def draw_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `compare.png` and `compare.svg`, and the same with `-errors` for metrics in the unit of the labels."""
    every = [(test.name, one) for test in comparison.tests for one in test.differences]
    paths = []
    for key, unit, shown in (
        ("compare", "percent points", [pair for pair in every if pair[1].metric not in ERRORS]),
        (
            "compare-errors",
            "less error, in the unit of the labels",
            [pair for pair in every if pair[1].metric in ERRORS],
        ),
    ):
        if shown:
            _draw(comparison, shown, unit, folder, Picture(key=key, title=_title(comparison), says=""))
            paths += [folder / f"{key}.svg", folder / f"{key}.png"]
    return paths


def _title(comparison: Comparison) -> str:
    sides = (("A", comparison.a), ("B", comparison.b))
    return "\n".join(["How much better B is than A", *(f"{letter}: {named(side.asked, 48)}" for letter, side in sides)])


def _draw(
    comparison: Comparison, shown: list[tuple[str, Difference]], unit: str, folder: Path, picture: Picture
) -> None:
    several = len(comparison.tests) > 1
    with drawn(folder, picture, 1.2 + 0.36 * len(shown)) as axes:
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, (_, difference) in enumerate(shown):
            gain, low, high = axis_values(difference)
            color = GOOD if low > 0 else BAD if high < 0 else BASELINE
            axes.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="round")
            axes.plot([gain], [row], "o", color=color, markersize=7)
            axes.annotate(plain_scores(difference), (gain, row), (0, 6), textcoords="offset points", ha="center",
                          fontsize=8, color=INK)  # fmt: skip
        names = [f"{named(test)}: {TITLES[one.metric]}" if several else TITLES[one.metric] for test, one in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.5, -0.7)
        axes.margins(x=0.15)
        axes.grid(axis="x", color=GRID)
        axes.set_xlabel(f"B is better by, {unit}; a line is the 95 % interval")
