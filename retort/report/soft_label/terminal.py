"""The result tables in the terminal."""

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from retort.metrics.format import seconds_text
from retort.report.base import Table, set_aside_line, verdict_lines
from retort.report.screen import screen_table
from retort.report.soft_label.summary import SoftLabelSummary, cost_table, gain_table, table


def render_terminal(summary: SoftLabelSummary, width: int) -> Group:
    """One table per test set, then differences, costs and the conclusion, to print with a rich console of `width`
    columns."""
    scores = [
        _table(f"{summary.name}: {rows}, {summary.rows[rows]:,} rows", table(summary, rows), width)
        for rows in summary.tests
    ]
    note = (
        "In percent, NLL in nats; the mean over seeds, ± the half of its 95 % interval. *: the exported student's arm. "
        "Of a difference also in how many seeds McNemar's p < 0.05, with a minus where it is against the first."
    )
    costs = _table(f"on one thread of {summary.costs.machine}, fp32", cost_table(summary), width)
    spent = f"The run cost {seconds_text(summary.compute_seconds)} of compute."
    gains = [_table("", gain_table(summary), width)] if summary.gains else []
    aside = [line] if (line := set_aside_line(summary)) else []
    conclusion = "\n".join([summary.reason, *verdict_lines(summary), *aside, spent])
    return Group(*scores, *gains, Text(note, style="dim"), Text(), costs, Text(conclusion))


def _table(heading: str, content: Table, width: int) -> RichTable:
    return screen_table(heading, content, width, ["bold green" if row[0].endswith("*") else "" for row in content.rows])
