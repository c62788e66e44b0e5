"""Tables in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from retort.report.base import Table

_GAP = 2
"""Columns between two cells."""
_EDGES = 2
"""Columns left and right of a table."""


def screen_table(
    heading: str, content: Table, width: int, styles: Sequence[str] = (), elsewhere: str = "in the report"
) -> RichTable:
    """One line per row, never wrapped: names on the left, numbers on the right.

    The last columns are left out where a terminal of `width` columns has no room for them, and counted below the table,
    with where they are. `styles` has one style per row.
    """
    fitting = _num_fitting(content, width)
    rendered = RichTable(
        title=Text(heading) if heading else None,
        title_style="bold",
        title_justify="left",
        caption=_left_out(len(content.columns) - fitting, elsewhere),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
    )
    for at, column in enumerate(content.columns[:fitting]):
        rendered.add_column(Text(column), justify="left" if at == 0 else "right", no_wrap=True)
    for at, row in enumerate(content.rows):
        rendered.add_row(*(Text(cell) for cell in row[:fitting]), style=styles[at] if styles else "")
    return rendered


def _num_fitting(content: Table, width: int) -> int:
    """How many columns fit, at least the first two."""
    used, fitting = _EDGES, 0
    for cells in zip(content.columns, *content.rows, strict=True):
        used += max(len(cell) for cell in cells) + _GAP
        if used > width and fitting >= 2:
            break
        fitting += 1
    return fitting


def _left_out(count: int, elsewhere: str) -> str | None:
    return f"{count} more column{'s' if count > 1 else ''} {elsewhere}." if count else None
