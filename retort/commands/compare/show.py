"""Shows a comparison in the terminal and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from retort.errors import ConfigError
from retort.io.terminal import printable, say
from retort.report.comparison import Comparison, cost_table, score_table, side_line


def show(comparison: Comparison, pictures: Sequence[Path]) -> None:
    """Print who is compared, a table per test set, the costs, and what to see."""
    from rich.console import Console

    from retort.report.screen import screen_table

    console = Console(highlight=False)
    say(side_line("A", comparison.a))
    say(side_line("B", comparison.b))
    for test in comparison.tests:
        heading = f"{test.name}, {test.rows:,} rows; in brackets 95 % intervals"
        console.print(screen_table(heading, score_table(test), console.width, elsewhere="with --json"))
    if cost_table(comparison).rows:
        console.print(screen_table("", cost_table(comparison), console.width, elsewhere="with --json"))
    several = len(comparison.tests) > 1
    told = (f"{test.name}: {test.says}" if several else test.says for test in comparison.tests)
    for line in (*comparison.notes, *told):
        console.print(printable(line), markup=False)
    say(f"\nPicture:  {', '.join(map(str, pictures))}")


def picture_of(comparison: Comparison, folder: Path) -> list[Path]:
    """Raises ConfigError if `folder` cannot be written."""
    from retort.report.pictures.comparison import draw_comparison

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return draw_comparison(comparison, folder)
    except OSError as error:
        raise ConfigError(f"--out '{folder}': cannot be written as a folder ({error.strerror})") from error
