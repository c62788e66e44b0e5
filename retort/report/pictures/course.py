"""Pictures of a run's course: time line, losses, costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from retort.artifacts.reports import Picture
from retort.metrics.format import seconds_text
from retort.report.course import ArmCost, Curve, Span
from retort.report.pictures.canvas import COLORS, GRID, INK, MUTED, drawn, legend, named

IDLE_SECONDS = 600.0
"""A longer time in which nothing of the run was made is cut out of the time line."""
STRETCHES = 4
"""Stretches of work that are drawn, the last ones."""
ROWS = 40
_GAP = 0.03
"""Width of a cut, as a share of the drawn time."""


@dataclass(frozen=True)
class _Bar:
    span: Span
    at: float
    """Seconds from the left end, without what was cut out."""


def draw_timeline(spans: Sequence[Span], folder: Path) -> list[Picture]:
    """What was made when, one line per kind of work, colored by the device."""
    stretches = _stretches(spans)
    left_out = sum(map(len, stretches[:-STRETCHES]))
    stretches = stretches[-STRETCHES:]
    if not stretches:
        return []
    shown = [span for stretch in stretches for span in stretch]
    worked = sum(max(span.end for span in stretch) - stretch[0].start for stretch in stretches)
    bars, cuts = _placed(stretches, _GAP * worked)
    rows = _rows(shown)
    lanes = {row: _lanes([bar for bar in bars if (bar.span.group, bar.span.what) == row]) for row in rows}
    devices = list(dict.fromkeys(_device(span, shown) for span in shown))
    picture = Picture(key="timeline", title="Time line of the run", says=_says(shown, worked, len(stretches), left_out))
    unit, scale = _unit(worked)
    with drawn(folder, picture, 1.3 + 0.19 * len(rows)) as axes:
        for bar in bars:
            row = (bar.span.group, bar.span.what)
            if row in rows:
                count = 1 + max(lanes[row].values())
                lane = lanes[row][bar]
                width = max(bar.span.seconds, 0.004 * worked) / scale
                color = COLORS[devices.index(_device(bar.span, shown)) % len(COLORS)]
                top = rows[row] - 0.4 + 0.8 * lane / count
                axes.barh(top, width, left=bar.at / scale, height=0.8 / count - 0.05, align="edge", color=color)
        for at, moment in cuts:
            axes.axvline(at / scale, color=MUTED, linestyle=":", linewidth=1)
            told = datetime.fromtimestamp(moment, UTC).strftime("%d %b %H:%M")
            axes.annotate(told, (at / scale, -0.8), (2, 0), textcoords="offset points", fontsize=7, color=MUTED)
        axes.set_yticks(range(len(rows)), [named(_row_name(*row), 32) for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -1.0)
        began = datetime.fromtimestamp(shown[0].start, UTC).strftime("%d %b %Y %H:%M UTC")
        axes.set_xlabel(f"{unit} since {began}{', idle time cut out' if cuts else ''}")
        for number, device in enumerate(devices):
            axes.barh(0, 0, color=COLORS[number % len(COLORS)], label=named(device, 40))
        legend(axes)
    return [picture]


def _stretches(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by stretch of work, in order."""
    found: list[list[Span]] = []
    end = 0.0
    for span in sorted(spans, key=lambda one: one.start):
        if not found or span.start > end + IDLE_SECONDS:
            found.append([])
        found[-1].append(span)
        end = max(end, span.end)
    return found


def _placed(stretches: Sequence[Sequence[Span]], gap: float) -> tuple[list[_Bar], list[tuple[float, float]]]:
    """(every span's place, for each cut its place and the moment at which work went on)."""
    bars, cuts, offset = [], [], 0.0
    for number, stretch in enumerate(stretches):
        start = stretch[0].start
        if number:
            cuts.append((offset, start))
            offset += gap
        bars += [_Bar(span, offset + span.start - start) for span in stretch]
        offset += max(span.end for span in stretch) - start
    return bars, cuts


def _lanes(bars: Sequence[_Bar]) -> dict[_Bar, int]:
    """Bars that overlap in time lie in lanes of their own, counted from 0."""
    ends: list[float] = []
    found = {}
    for bar in sorted(bars, key=lambda one: one.at):
        lane = next((number for number, end in enumerate(ends) if end <= bar.at), len(ends))
        ends[lane : lane + 1] = [bar.at + bar.span.seconds]
        found[bar] = lane
    return found


def _rows(spans: Sequence[Span]) -> dict[tuple[str, str], int]:
    """A line for each kind of work, in the order in which they were started; those that took longest, if too many."""
    seconds: dict[tuple[str, str], float] = {}
    for span in spans:
        seconds[span.group, span.what] = seconds.get((span.group, span.what), 0.0) + span.seconds
    kept = sorted(seconds, key=lambda row: -seconds[row])[:ROWS]
    return {row: place for place, row in enumerate(row for row in seconds if row in kept)}


def _row_name(group: str, what: str) -> str:
    return what if group == "data" or group == what else f"{group}: {what}"


def _device(span: Span, spans: Sequence[Span]) -> str:
    """With the host where there are several."""
    device = span.device or "device not recorded"
    return f"{span.host} {device}" if span.host and len({one.host for one in spans}) > 1 else device


def _says(spans: Sequence[Span], worked: float, stretches: int, left_out: int) -> str:
    longest = max(spans, key=lambda span: span.seconds)
    seconds = sum(span.seconds for span in spans)
    hosts = {span.host for span in spans if span.host}
    return "".join(
        [
            f"{len(spans)} artifacts took {seconds_text(seconds)} of compute in {seconds_text(worked)} of work",
            f" on {len(hosts)} machines" if len(hosts) > 1 else "",
            f" in {stretches} stretches" if stretches > 1 else "",
            f", so {seconds / worked:.1f} were made at once on average. " if worked else ". ",
            f"The longest was {_row_name(longest.group, longest.what)}, {seconds_text(longest.seconds)}.",
            f" {left_out} older artifacts are not drawn." if left_out else "",
        ]
    )


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def draw_losses(curves: Sequence[Curve], folder: Path) -> list[Picture]:
    """Every student's loss over its optimizer steps, colored by group."""
    if not curves:
        return []
    groups = list(dict.fromkeys(curve.group for curve in curves))
    picture = Picture(key="losses", title="Losses of the students", says=_losses_say(curves))
    values = [loss for curve in curves for loss in (*curve.losses, *curve.held_out_losses)]
    with drawn(folder, picture, 3.4 + 0.18 * ((len(groups) + 1) // 2)) as axes:
        for curve in curves:
            number = groups.index(curve.group)
            color = COLORS[number % len(COLORS)]
            last = groups[number] == "final student"
            axes.plot(curve.steps, curve.losses, color=color, linewidth=2.0 if last else 1.1, alpha=0.9)
            if curve.held_out_steps:
                axes.plot(curve.held_out_steps, curve.held_out_losses, ":", color=color, marker=".", markersize=4)
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own writes formulas
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(color=GRID)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("loss per unit, nats")
        for number, group in enumerate(groups):
            axes.plot([], [], color=COLORS[number % len(COLORS)], label=named(group, 30))
        legend(axes)
    return [picture]


def _losses_say(curves: Sequence[Curve]) -> str:
    last = next((curve for curve in reversed(curves) if curve.group == "final student"), curves[-1])
    told = (
        f"{named(last.name, 60)} went from {last.losses[0]:.3g} to {last.losses[-1]:.3g} in {last.steps[-1]:,} steps. "
    )
    if any(curve.held_out_steps for curve in curves):
        told += "Dotted: the loss on rows that were held out; a student whose dotted line rises learns by heart. "
    return told + "A curve that still falls at its end would gain from more steps; one that jumps, from a lower rate."


def draw_costs(costs: Sequence[ArmCost], folder: Path) -> list[Picture]:
    """Compute and money of every arm."""
    if not costs:
        return []
    pictures = [
        Picture(key="costs", title="Compute of each arm", says=_costs_say(costs)),
        Picture(key="money", title="Money of each arm", says=_money_says(costs)),
    ]
    rows = range(len(costs))
    unit, scale = _unit(max(cost.seconds for cost in costs))
    with drawn(folder, pictures[0], 1.4 + 0.27 * len(costs)) as axes:
        shared = [(cost.seconds - cost.own_seconds) / scale for cost in costs]
        own = [cost.own_seconds / scale for cost in costs]
        axes.barh(rows, own, color=COLORS[0], height=0.65, label="needed by no arm above")
        axes.barh(rows, shared, left=own, color="#c5d3e3", height=0.65, label="shared with arms above")
        _name_costs(
            axes, costs, [seconds_text(cost.seconds) for cost in costs], [cost.seconds / scale for cost in costs]
        )
        axes.set_xlabel(f"compute, {unit}")
        legend(axes)
    if not any(cost.money for cost in costs):
        return pictures[:1]
    with drawn(folder, pictures[1], 1.0 + 0.27 * len(costs)) as axes:
        axes.barh(rows, [cost.money for cost in costs], color=COLORS[2], height=0.65)
        _name_costs(axes, costs, [f"{cost.money:.4g}" for cost in costs], [cost.money for cost in costs])
        axes.set_xlabel("paid to teachers, in the currency of teacher.prices")
    return pictures


def _name_costs(axes: Axes, costs: Sequence[ArmCost], texts: Sequence[str], ends: Sequence[float]) -> None:
    axes.set_yticks(range(len(costs)), [named(cost.name) for cost in costs])
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        axes.annotate(text, (end, row), (3, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=GRID)


def _costs_say(costs: Sequence[ArmCost]) -> str:
    dearest, cheapest = (choose(costs, key=lambda cost: cost.seconds) for choose in (max, min))
    return (
        f"As if no other arm had been there, {named(dearest.name)} takes {seconds_text(dearest.seconds)}, "
        f"{named(cheapest.name)} {seconds_text(cheapest.seconds)}. The dark part is what the run would be spared "
        "without the arm and those below it."
    )


def _money_says(costs: Sequence[ArmCost]) -> str:
    free = [named(cost.name) for cost in costs if not cost.money]
    most = max(cost.money for cost in costs)
    end = f" Nothing is paid for {', '.join(free)}." if free else ""
    return f"Arms that learn from the same teacher's labels share one bill, of {most:.4g} at most.{end}"
