"""The result tables in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from retort.metrics.format import seconds_text
from retort.report.base import Table as Content
from retort.report.base import set_aside_line, verdict_lines
from retort.report.soft_label.summary import SoftLabelSummary, cost_table, gain_table, table


def render_terminal(summary: SoftLabelSummary) -> Group:
    """One table per test set, then differences, costs and the conclusion. Print it with a rich console."""
    scores = [
        _table(f"{summary.name}: {rows}, {summary.rows[rows]:,} rows", table(summary, rows)) for rows in summary.tests
    ]
    note = (
        "In percent, NLL in nats; the mean over seeds, ± the half of its 95 % interval. *: the exported student's arm. "
        "Of a difference also in how many seeds McNemar's p < 0.05, with a minus where it is against the first."
    )
    costs = _table(f"on one thread of {summary.costs.machine}, fp32", cost_table(summary))
    spent = f"The run cost {seconds_text(summary.compute_seconds)} of compute."
    gains = [_table("", gain_table(summary))] if summary.gains else []
    aside = [line] if (line := set_aside_line(summary)) else []
    conclusion = "\n".join([summary.reason, *verdict_lines(summary), *aside, spent])
    return Group(*scores, *gains, Text(note, style="dim"), Text(), costs, Text(conclusion))


def _table(title: str, content: Content) -> Table:
    rendered = Table(
        title=Text(title) if title else None,
        title_style="bold",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for at, column in enumerate(content.columns):
        rendered.add_column(column, justify="left" if at == 0 else "right", no_wrap=at > 0)
    for row in content.rows:
        rendered.add_row(*row, style="bold green" if row[0].endswith("*") else "")
    return rendered
