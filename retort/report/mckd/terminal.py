"""The result table in the terminal."""

from rich.console import Group
from rich.text import Text

from retort.config import ERRORS
from retort.metrics.format import TITLES, gain_text, score_text, seconds_text, with_interval
from retort.records.base import Score
from retort.report.base import Table, set_aside_line, verdict_lines
from retort.report.mckd.summary import MckdSummary, SystemRow, title
from retort.report.screen import screen_table

_VANILLA = "vanilla-kd"
_STYLES = {"teacher": "", "stage": "", "final": "bold green", "champion": "", "baseline": ""}


def render_terminal(summary: MckdSummary, width: int) -> Group:
    """One line per arm, then what was gained and why, to print with a rich console of `width` columns."""
    tests = next((score.n for score in summary.final.scores.values()), 0)
    unit = "in percent, errors in the unit of the labels" if ERRORS & set(summary.metrics) else "in percent"
    heading = f"{summary.name}: scores {unit}, on {tests:,} test rows, with 95 % intervals"
    notes = [f"{row.name}: {row.note}" for row in summary.systems if row.note and row.note != "baseline"]
    cost = f"The run cost {seconds_text(summary.compute_seconds)} of compute."
    lines = [summary.gained, summary.reason, *verdict_lines(summary), set_aside_line(summary), cost]
    return Group(
        screen_table(heading, _table(summary), width, [_STYLES[row.role] for row in summary.systems]),
        Text("\n".join(notes), style="dim"),
        Text(),
        Text("\n".join(line for line in lines if line)),
    )


def _table(summary: MckdSummary) -> Table:
    """The columns that matter least are the last ones, as these may not fit."""
    first, *more = summary.metrics
    gains = _gains_over_vanilla(summary)
    columns = ("", TITLES[first], *(["over vanilla"] if gains else []), "seconds", *(TITLES[metric] for metric in more))
    rows = tuple(
        (
            _name(row),
            with_interval(row.scores.get(first)),
            *([gains.get(row.name, "")] if gains else []),
            f"{row.seconds:.0f}",
            *(_value(row.scores.get(metric)) for metric in more),
        )
        for row in summary.systems
    )
    return Table(columns, rows)


def _gains_over_vanilla(summary: MckdSummary) -> dict[str, str]:
    """By row, how much better it is than vanilla distillation on the test rows, in the deciding metric. Only the final
    student is compared row by row, and so has an interval."""
    metric = summary.metric
    vanilla = next((row for row in summary.systems if row.name == _VANILLA and metric in row.scores), None)
    if vanilla is None:
        return {}
    gains = {}
    for row in summary.systems:
        if row is not vanilla and row.measured_on == "test" and metric in row.scores:
            more = row.scores[metric].value - vanilla.scores[metric].value
            gains[row.name] = gain_text(metric, -more if metric in ERRORS else more)
        if row.role == "final" and (gain := vanilla.final_gain):
            value, low, high = (gain_text(metric, one) for one in (gain.value, gain.low, gain.high))
            gains[row.name] = f"{value} [{low}, {high}]"
    return gains


def _name(row: SystemRow) -> str:
    """With the rows that it was measured on, where these are not the test rows and the name does not say so."""
    return f"{title(row)} (pool)" if row.measured_on == "pool" else title(row)


def _value(score: Score | None) -> str:
    return "-" if score is None else score_text(score.metric, score.value)
