"""The command line of what looks at finished runs: `sweep`, `report`, `compare`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from retort.commands.options import ConfigPath, Json, Overrides, Registry
from retort.io.terminal import say

WHAT = (
    "A config (its newest run with these settings), a run (its config's name, or the first characters of its id), "
    "models:/NAME/VERSION, models:/NAME@champion, or the address of a student's artifact."
)


def sweep(
    config: ConfigPath,
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary", metavar="FIELD=V1,V2", help="A field and its values: data.limit=500,1000. Repeatable: all pairs."
        ),
    ],
    set_: Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="For sweep.jsonl and the picture sweep.svg.")
    ] = Path(".retort/sweep"),
) -> None:
    """Run the config once per value of a field, and show the scores.

    Side by side, in a table and a picture. Nothing is registered.
    """
    from rich.console import Console

    from retort.commands.sweep import draw_sweep, sweep_table
    from retort.commands.sweep import sweep as run_all
    from retort.report.screen import screen_table

    points = []
    for point in run_all(config, set_ or [], vary):
        points.append(point)
        out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({**one._asdict(), "setting": dict(one.setting)}) for one in points]
        (out / "sweep.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console = Console(highlight=False)
    console.print(screen_table("", sweep_table(points), console.width))
    if any(not point.failed for point in points):
        draw_sweep(points, out / "sweep.svg")
        say(f"{out}/sweep.jsonl, {out}/sweep.svg")
    if any(point.failed for point in points):
        raise typer.Exit(1)


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
