"""The command line of what looks at finished runs: `report`, `compare`, `review`, `why`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from retort.cli.options import ConfigPath, Json, Model, Overrides, Registry, tell
from retort.io.terminal import say

WHAT = (
    "A config (its newest run with these settings), a run (its config's name, or the first characters of its id), "
    "models:/NAME/VERSION, models:/NAME@champion, or the address of a student's artifact."
)


def report(
    config: ConfigPath,
    set_: Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="For report.html, report.md and the pictures.")
    ] = Path(".retort/report"),
) -> None:
    """Write the report of the last run of this config."""
    from retort.commands.report import copy_report
    from retort.recipes import load_config
    from retort.store.opening import refusals, usable_store

    settings = load_config(config, set_ or [])
    with refusals():
        for path in copy_report(usable_store(settings), settings, out):
            say(str(path))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=WHAT)],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    set_: Overrides = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="ROOT", help="Of runs; left out, the other's store, or .retort/store."),
    ] = None,
    tracking: Registry = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="For the picture, compare.svg and .png.")] = Path(
        ".retort/compare"
    ),
    json_: Json = False,
) -> None:
    """Compare two students on the same test rows.

    Metrics with paired intervals, cost and time.
    """
    from retort.commands.compare.compare import compare as make_comparison
    from retort.commands.compare.show import picture_of, show
    from retort.commands.compare.sides import Asked

    comparison = make_comparison(a, b, Asked(tuple(set_ or ()), store, tracking))
    pictures = picture_of(comparison, out)
    if json_:
        print(comparison.model_dump_json())
    else:
        show(comparison, pictures)


def review(
    config: ConfigPath,
    set_: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows people are to label.")] = 100,
    for_: Annotated[
        Literal["disagreement", "estimate"],
        typer.Option("--for", help="Rows of the pool that are disputed, or test rows for an estimate of the score."),
    ] = "disagreement",
    format_: Annotated[
        Literal["csv", "argilla", "label-studio"], typer.Option("--format", help="What the file is for.")
    ] = "csv",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new file; left out: review.csv or review.json.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="With --for estimate: test rows without labels. Else data.test."),
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="The labeled file, as the tool exported it.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="With --import: who gave labels that do not say it.")
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", metavar="FILE", help="With --import: the JSON lines to append to; gold.jsonl."),
    ] = None,
    json_: Json = False,
) -> None:
    """Export the rows that are worth a label, and import the labels.

    With --for estimate, the import prints the score on all test rows that follows from the labels, with an interval.
    """
    from retort.commands.review.run import export_lines, export_rows, import_answers, import_lines
    from retort.errors import ConfigError
    from retort.recipes import load_config

    settings = load_config(config, set_ or [])
    if import_ is None:
        if by is not None or gold is not None:
            raise ConfigError("--by and --gold go with --import FILE")
        exported = export_rows(settings, rows, for_, format_, out, from_)
        tell(exported, export_lines(exported), json_)
    else:
        imported = import_answers(settings, import_, by, gold)
        tell(imported, import_lines(imported, gold), json_)


def why(
    model: Model,
    row: Annotated[str | None, typer.Option("--row", metavar="ID", help="Tell the history of this row.")] = None,
    tracking: Registry = None,
    json_: Json = False,
) -> None:
    """Tell where a student came from, or the history of one row.

    Every stage back to the teacher and the data.
    """
    from retort.lineage.row import history
    from retort.lineage.student import Traced, trace
    from retort.lineage.text import history_lines, lineage_lines

    traced = Traced(model, tracking)
    if row is None:
        lineage = trace(traced)
        tell(lineage, lineage_lines(lineage), json_)
    else:
        found = history(traced, row)
        tell(found, history_lines(found), json_)
