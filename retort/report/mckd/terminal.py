"""The result table in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retort.config import ERRORS
from retort.metrics.format import seconds_text
from retort.report.base import verdict_lines
from retort.report.mckd.summary import MckdSummary, table

MOST_METRICS = 3
"""How many metrics fit in 80 columns; the report has all."""
_STYLES = {"teacher": "", "stage": "", "final": "bold green", "champion": "", "baseline": ""}


def render_terminal(summary: MckdSummary) -> Table:
    """Print it with `rich.console.Console().print`. Intervals and notes have their own lines, to fit in 80 columns."""
    content = table(summary, MOST_METRICS)
    more = len(summary.metrics) - MOST_METRICS
    elsewhere = [f"The report has {more} more metric{'s' if more > 1 else ''}."] if more > 0 else []
    cost = f"The run cost {seconds_text(summary.compute_seconds)} of compute."
    lines = [summary.gained, summary.reason, *verdict_lines(summary), *elsewhere, cost]
    unit = "in percent, errors in the unit of the labels" if ERRORS & set(summary.metrics) else "in percent"
    rendered = Table(
        title=Text(f"{summary.name}: scores {unit}, with 95 % intervals"),
        title_style="bold",
        title_justify="left",
        caption=Text("\n".join(line for line in lines if line)),
        caption_justify="left",
        caption_style="",
        box=SIMPLE_HEAD,
    )
    rendered.add_column()
    for column in content.columns[1:-1]:
        number = column in ("rows", "seconds")
        rendered.add_column(column, justify="right" if number else "left", no_wrap=number)
    for row, (name, *cells, note) in zip(summary.systems, content.rows, strict=True):
        below = (Text(cell.replace(" [", "\n[")) for cell in cells)
        rendered.add_row(Text.assemble(name, "\n", (note, "dim not bold")), *below, style=_STYLES[row.role])
    return rendered
