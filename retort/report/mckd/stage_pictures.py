"""Pictures of the stages: the learning curve over them, and how labels flow from one to the next."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from retort.artifacts.reports import Picture
from retort.metrics.format import TITLES, percent, score_text
from retort.records.base import Score
from retort.report.mckd.summary import Flow, LabelStage, MckdSummary, SystemRow
from retort.report.pictures.canvas import BAD, BASELINE, FINAL, GOOD, GRID, MUTED, SAME, STAGE, TEACHER, drawn, legend
from retort.report.pictures.scores import scale_of, unit_of

STATES = {"right": GOOD, "wrong": BAD, "none": "#c3cad1"}
"""Colors of labels against the gold, from the top of a column to its end."""
_WIDTH = 0.12
"""Of a column, where the distance between two is 1."""


def draw_learning_curve(summary: MckdSummary, folder: Path) -> list[Picture]:
    """The deciding metric of students and labels from stage to stage."""
    metric = summary.metric
    stages = [row for row in summary.systems if row.role == "stage" and row.stage and row.scores]
    if not stages:
        return []
    picture = Picture(key="stages", title="Learning curve over the stages", says=_learning_says(summary, stages))
    labels = {one.stage: one.quality[metric] for one in summary.labels if metric in one.quality and not one.fine_tuned}
    numbers = [row.stage or 0 for row in stages]
    last = max(numbers) + 1
    with drawn(folder, picture, 3.7) as axes:
        _line(
            axes,
            metric,
            dict(zip(numbers, [row.scores[metric] for row in stages], strict=True)),
            STAGE,
            "students, test rows",
        )
        judged = {
            number: row.judge_scores[metric] for number, row in zip(numbers, stages, strict=True) if row.judge_scores
        }
        _line(axes, metric, judged, "#7b5aa6", "students, judging rows", shift=0.06)
        _line(axes, metric, labels, TEACHER, "labels, pool's gold", shift=-0.06)
        _line(axes, metric, {last: summary.final.scores[metric]}, FINAL, "final student, test rows")
        vanilla = next((row.scores[metric] for row in summary.systems if row.name == "vanilla-kd" and row.scores), None)
        if vanilla:
            axes.axhline(
                scale_of(metric) * vanilla.value, color=BASELINE, linestyle="--", label="vanilla-kd, test rows"
            )
        ticks = sorted({*numbers, *labels})
        axes.set_xticks([*ticks, last], [*("teacher" if tick == 0 else str(tick) for tick in ticks), "final"])
        axes.grid(color=GRID)
        axes.margins(x=0.08)
        axes.set_xlabel("stage")
        axes.set_ylabel(unit_of(metric))
        legend(axes)
    return [picture]


def _line(axes: Axes, metric: str, scores: dict[int, Score], color: str, name: str, shift: float = 0.0) -> None:
    if not scores:
        return
    scale, places = scale_of(metric), [stage + shift for stage in scores]
    values = [scale * score.value for score in scores.values()]
    below = [scale * max(0.0, score.value - score.low) for score in scores.values()]
    above = [scale * max(0.0, score.high - score.value) for score in scores.values()]
    axes.errorbar(places, values, yerr=[below, above], color=color, marker="o", markersize=5, capsize=2, label=name)


def _learning_says(summary: MckdSummary, stages: Sequence[SystemRow]) -> str:
    metric, final = summary.metric, summary.final.scores[summary.metric]
    first, last = stages[0].scores[metric], stages[-1].scores[metric]
    told = ""
    if len(stages) > 1:
        told = (
            f"From stage {stages[0].stage} to {stages[-1].stage} the students went from "
            f"{score_text(metric, first.value)} to {score_text(metric, last.value)} {TITLES[metric]} on the test rows. "
        )
    return (
        f"{told}The final student has {score_text(metric, final.value)}. Judging rows decide, test rows only tell; a "
        "line is a 95 % interval over rows."
    )


def draw_label_flow(summary: MckdSummary, folder: Path) -> list[Picture]:
    """What became of right and wrong labels from stage to stage; where no gold is known, what was changed at all."""
    changed = [labels for labels in summary.labels if labels.change is not None]
    if not changed:
        return []
    title = "How labels flow between the stages"
    if not any(flow.before != "none" or flow.after != "none" for labels in changed for flow in labels.flows):
        picture = Picture(key="label-flow", title=title, says=_changes_say(changed))
        return [_draw_changes(changed, picture, folder)]
    picture = Picture(key="label-flow", title=title, says=_flow_says(changed))
    with drawn(folder, picture, 3.6) as axes:
        ticks: list[tuple[float, str]] = []
        at, column = 0.0, ""
        for labels in changed:
            before = _before(summary, labels)
            if before != column:
                at += 1 if ticks else 0
                _draw_column(axes, at, _totals(labels.flows, "before"))
                ticks.append((at, before))
            _draw_flows(axes, at, labels.flows)
            at, column = at + 1, labels.name
            _draw_column(axes, at, _totals(labels.flows, "after"))
            ticks.append((at, column))
        axes.set_xticks(
            [place for place, _ in ticks], [name.replace(" (", "\n(").replace(", ", ",\n") for _, name in ticks]
        )
        axes.set_xlabel("labels after stage")
        axes.set_ylabel("rows of the pool with gold, percent")
        for state, color in STATES.items():
            axes.bar(0, 0, color=color, label={"none": "no label"}.get(state, state))
        legend(axes, 3)
    return [picture]


def _before(summary: MckdSummary, labels: LabelStage) -> str:
    """The name of the labels that these replaced."""
    stage = summary.kept_stage - 1 if labels.fine_tuned else labels.stage - 1
    return next(one.name for one in summary.labels if one.stage == stage and not one.fine_tuned)


def _totals(flows: Sequence[Flow], side: str) -> dict[str, int]:
    return {state: sum(flow.rows for flow in flows if getattr(flow, side) == state) for state in STATES}


def _draw_column(axes: Axes, at: float, totals: dict[str, int]) -> None:
    rows, top = sum(totals.values()), 100.0
    for state, count in totals.items():
        height = 100 * count / rows
        axes.bar(at, height, width=_WIDTH, bottom=top - height, color=STATES[state])
        if height >= 6:
            axes.text(
                at, top - height / 2, f"{count:,}", ha="center", va="center", fontsize=7, color="white", rotation=90
            )
        top -= height


def _draw_flows(axes: Axes, at: float, flows: Sequence[Flow]) -> None:
    """Bands from column to column, in the color of what became of the labels."""
    rows = sum(flow.rows for flow in flows)
    ends = {side: _starts(_totals(flows, side)) for side in ("before", "after")}
    for before, after, count in _ordered(flows):
        height = 100 * count / rows
        left, right = ends["before"][before], ends["after"][after]
        ends["before"][before] -= height
        ends["after"][after] -= height
        color = SAME if (before, after) == ("wrong", "wrong") else STATES[after]
        axes.add_patch(PathPatch(_band(at, left, right, height), facecolor=color, alpha=0.35, linewidth=0))


def _starts(totals: dict[str, int]) -> dict[str, float]:
    """The upper end of each state in a column of 100 percent."""
    rows, top, found = sum(totals.values()), 100.0, {}
    for state, count in totals.items():
        found[state] = top
        top -= 100 * count / rows
    return found


def _ordered(flows: Sequence[Flow]) -> Iterator[tuple[str, str, int]]:
    """From the top of both columns to the end, so that bands cross as little as possible."""
    order = list(STATES)
    for flow in sorted(flows, key=lambda flow: (order.index(flow.before), order.index(flow.after))):
        yield flow.before, flow.after, flow.rows


def _band(at: float, left: float, right: float, height: float) -> Outline:
    """A band whose upper edge goes from `left` to `right`."""
    x0, x1 = at + _WIDTH / 2, at + 1 - _WIDTH / 2
    middle = (x0 + x1) / 2
    upper = [(x0, left), (middle, left), (middle, right), (x1, right)]
    lower = [(x1, right - height), (middle, right - height), (middle, left - height), (x0, left - height)]
    codes = [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO, *[Outline.CURVE4] * 3, Outline.CLOSEPOLY]
    return Outline([*upper, *lower, (x0, left)], codes)


def _flow_says(changed: Sequence[LabelStage]) -> str:
    told = []
    for labels in changed:
        known = sum(flow.rows for flow in labels.flows)
        counts = {(flow.before, flow.after): flow.rows for flow in labels.flows}
        mended, broken = counts.get(("wrong", "right"), 0), counts.get(("right", "wrong"), 0)
        told.append(f"Stage {labels.name} mended {mended:,} wrong labels and broke {broken:,} right ones of {known:,}.")
    return (
        f"{' '.join(told)} Green that grows from column to column is what relabeling gained; nothing was decided by it."
    )


def _draw_changes(changed: Sequence[LabelStage], picture: Picture, folder: Path) -> Picture:
    """Bars of what each stage did, in percent of its labels."""
    with drawn(folder, picture, 1.5 + 0.35 * len(changed)) as axes:
        left = [0.0] * len(changed)
        names = [labels.name for labels in changed]
        for kind, color in {"as before": "#c3cad1", "changed": STAGE, "had no label": GOOD}.items():
            shares = [100 * _changes(labels)[kind] / max(1, labels.rows) for labels in changed]
            axes.barh(names, shares, left=left, color=color, height=0.6, label=kind)
            left = [start + share for start, share in zip(left, shares, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("labels, percent")
        axes.set_ylabel("stage", color=MUTED)
        legend(axes, 3)
    return picture


def _changes(labels: LabelStage) -> dict[str, int]:
    change = labels.change
    assert change is not None
    return {
        "as before": labels.rows - change.changed - change.new,
        "changed": change.changed,
        "had no label": change.new,
    }


def _changes_say(changed: Sequence[LabelStage]) -> str:
    told = [f"stage {labels.name} changed {percent(labels.changed_share)} %" for labels in changed]
    return (
        f"Of the labels, {', '.join(told)}. The pool has no gold that could tell whether for the better; a stage that "
        "changes little has little to teach."
    )
