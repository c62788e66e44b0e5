"""Pictures of what a student gets right and wrong: reliability, heat map, bars by name, slices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from retort.artifacts.reports import Picture
from retort.config import ERRORS
from retort.metrics.format import percent, score_text
from retort.records.base import Score
from retort.report.base import as_key
from retort.report.mistakes import OTHERS
from retort.report.pictures.canvas import BAD, COLORS, FINAL, GOOD, GRID, INK, MUTED, STAGE, drawn, legend, named
from retort.report.pictures.scores import scale_of, unit_of
from retort.report.quality import ErrorTable, HeatMap, Reliability, Slice

BARS = 24
"""Names in a picture of bars; the worst, if there are more."""
_LETTERS = 18
"""Of a name beside a heat map."""


def draw_reliability(
    systems: Sequence[Reliability], folder: Path, where: str = "", *, whole: bool = True
) -> list[Picture]:
    """`where` names the test set, if there are several. `whole` says whether a label is more than one class, so that
    the confidence in a unit is more than that in the label."""
    if not systems:
        return []
    picture = Picture(
        key=_key("reliability", where), title=_title("Reliability", where), says=_reliability_says(systems[0], whole)
    )
    with drawn(folder, picture, 4.2) as axes:
        axes.plot([0, 100], [0, 100], "--", color=MUTED, linewidth=1)
        for number, system in enumerate(systems):
            color = FINAL if number == 0 else COLORS[(number - 1) % len(COLORS)]
            confidences, rights = (
                [100 * getattr(one, name) for one in system.bins] for name in ("confidence", "right")
            )
            axes.plot(confidences, rights, color=color, linewidth=1.2, label=named(system.name))
            sizes = [12 + 160 * one.rows / sum(bin.rows for bin in system.bins) for one in system.bins]
            axes.scatter(confidences, rights, s=sizes, color=color, zorder=3)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.grid(color=GRID)
        axes.set_xlabel("confidence, percent")
        axes.set_ylabel("rows whose whole label is right, percent")
        legend(axes)
    return [picture]


def _reliability_says(system: Reliability, whole: bool) -> str:
    most = max(system.bins, key=lambda one: one.rows)
    told = (
        f"In the largest bin ({most.rows:,} rows), {named(system.name)} is {percent(most.confidence)} % sure on "
        f"average and right in {percent(most.right)} %; the expected calibration error is {percent(system.error)} "
        "points. Below the dashed line it is too sure, above it too modest; a larger dot stands for more rows."
    )
    if whole:
        told += " The confidence is a mean over the label's units, so a long label is right less often than it says."
    return told


def draw_errors(tables: Sequence[ErrorTable], folder: Path, where: str = "") -> list[Picture]:
    """A heat map and bars for each table that has two names or more."""
    pictures = []
    for table in tables:
        place = " ".join(filter(None, (table.title if len(tables) > 1 else "", where)))
        if table.heat is not None:
            pictures += _draw_heat_map(table.heat, table, folder, place)
        if len(table.names) > 1:
            pictures += _draw_bars(table, folder, place)
    return pictures


def _draw_heat_map(heat: HeatMap, table: ErrorTable, folder: Path, place: str) -> list[Picture]:
    title = _title("What is taken for what", place)
    picture = Picture(key=_key("confusions", place), title=title, says=_heat_map_says(table))
    counts = np.array(heat.counts, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.array([[gold == said for said in heat.predicted] for gold in heat.gold])
    side = 0.22 if len(heat.gold) > 10 else 0.3
    with drawn(folder, picture, 1.9 + side * len(heat.gold)) as axes:
        axes.imshow(np.where(right, np.nan, shares), cmap=_shades(BAD), vmin=0, vmax=1, aspect="auto")
        axes.imshow(np.where(right, shares, np.nan), cmap=_shades(GOOD), vmin=0, vmax=1, aspect="auto")
        small = 7.5 if len(heat.predicted) <= 10 else 5 if len(heat.predicted) <= 18 else 4
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.6 else INK
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=small, color=color)
        letters = 8 if len(heat.gold) <= 10 else 7
        axes.set_xticks(
            range(len(heat.predicted)), [named(one, _LETTERS) for one in heat.predicted], rotation=90, fontsize=letters
        )
        axes.set_yticks(range(len(heat.gold)), [named(one, _LETTERS) for one in heat.gold], fontsize=letters)
        axes.set_xlabel("said by the student (counts)")
        axes.set_ylabel("gold (counts)")
    return [picture]


def _heat_map_says(table: ErrorTable) -> str:
    read = (
        "Green is right, red is wrong, and the deeper, the larger the share of the gold name; the numbers are counts."
    )
    if table.heat is not None and OTHERS in table.heat.gold:
        read += f" {OTHERS} are all names that are mistaken less."
    if not table.confusions:
        return f"Nothing is mistaken. {read}"
    most = table.confusions[0]
    return f"Most often {named(most.gold, 40)} is taken for {named(most.predicted, 40)}, {most.count:,} times. {read}"


def _shades(color: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(color, ["#ffffff", color])


def _draw_bars(table: ErrorTable, folder: Path, place: str) -> list[Picture]:
    shown = sorted(table.names, key=lambda one: (one.f1, -one.support))[:BARS]
    worst, best = shown[0], max(table.names, key=lambda one: one.f1)
    left_out = len(table.names) - len(shown)
    more = f" {left_out} better names are not drawn." if left_out else ""
    says = (
        f"{named(worst.name, 40)} is found worst (F1 {percent(worst.f1)}, {worst.support:,} in gold), "
        f"{named(best.name, 40)} best ({percent(best.f1)}). Where the diamond is left of the dot, it is missed "
        f"more often than said wrongly, else said too often.{more}"
    )
    picture = Picture(key=_key("by-name", place), title=_title("F1 by name", place), says=says)
    with drawn(folder, picture, 1.4 + 0.2 * len(shown)) as axes:
        rows = range(len(shown))
        axes.barh(rows, [100 * one.f1 for one in shown], color="#a9c0da", height=0.7, label="F1")
        axes.plot(
            [100 * one.precision for one in shown],
            rows,
            "o",
            color=STAGE,
            markersize=4,
            label="precision",
            linestyle="",
        )
        axes.plot(
            [100 * one.recall for one in shown], rows, "D", color=FINAL, markersize=3.5, label="recall", linestyle=""
        )
        axes.set_yticks(rows, [f"{named(one.name, 22)} ({one.support:,})" for one in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 103)
        axes.grid(axis="x", color=GRID)
        axes.set_xlabel("percent (in brackets: how often in gold)")
        legend(axes, 3)
    return [picture]


def draw_slices(slices: Sequence[Slice], overall: Score, folder: Path, where: str = "") -> list[Picture]:
    """The worst slices beside the score on all rows."""
    if len(slices) < 2:
        return []
    metric, worst = overall.metric, slices[0]
    apart = worst.score.low > overall.high if metric in ERRORS else worst.score.high < overall.low
    sure = "beyond both intervals" if apart else "which may be chance, as the intervals overlap"
    says = (
        f"The final student is worst on {named(worst.name, 60)}: {score_text(metric, worst.score.value)} on "
        f"{worst.score.n:,} rows, against {score_text(metric, overall.value)} on all {overall.n:,}, {sure}. The dashed "
        "line is the score on all rows. Slices overlap, and the worst of many looks worse than it is: see whether it "
        "stays the worst."
    )
    picture = Picture(key=_key("slices", where), title=_title("Worst slices of the test rows", where), says=says)
    scale = scale_of(metric)
    with drawn(folder, picture, 1.1 + 0.26 * len(slices)) as axes:
        axes.axvline(scale * overall.value, color=MUTED, linestyle="--", linewidth=1)
        for row, one in enumerate(slices):
            ends = [scale * one.score.low, scale * one.score.high]
            axes.plot(ends, [row, row], color=STAGE, linewidth=2, solid_capstyle="round")
            axes.plot([scale * one.score.value], [row], "o", color=STAGE, markersize=6)
        axes.set_yticks(range(len(slices)), [f"{named(one.name, 30)} ({one.score.n:,})" for one in slices], fontsize=8)
        axes.set_ylim(len(slices) - 0.4, -0.6)
        axes.grid(axis="x", color=GRID)
        axes.set_xlabel(f"{unit_of(metric)} (in brackets: rows)")
    return [picture]


def _title(title: str, where: str) -> str:
    return f"{title}: {named(where, 30)}" if where else title


def _key(key: str, where: str) -> str:
    return f"{key}-{as_key(where)}" if where else key
