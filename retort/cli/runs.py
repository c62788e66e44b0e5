"""The command line of runs: `plan`, `run`, `sweep`, `batch`, `maintain`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from retort.cli.options import ConfigPath, Json, Overrides, tell
from retort.cli.workflow import become
from retort.io.terminal import say

BatchFile = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines in OpenAI's batch format.")]


def run(
    config: ConfigPath,
    set_: Overrides = None,
    json_: Json = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="STAGE", help="Make only this one (stage1/student-0, stage1: see plan). Repeatable."
        ),
    ] = None,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from-stage", metavar="STAGE", help="Begin here: what comes before must be in the store already."
        ),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STAGE", help="Make this stage again, and all that rests on it. Repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; with --json no tables either.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Check every stored file that the run would use; make damaged ones again.")
    ] = False,
) -> None:
    """Run the distillation. What is in the store already is not made again."""
    scope = {"only": only or [], "from_stage": from_stage, "force": force or []}
    options = {"overrides": set_ or [], "scope": scope, "json_output": json_, "quiet": quiet, "repair": repair}
    become("flows.launch", config, json.dumps(options))


def plan(config: ConfigPath, set_: Overrides = None, json_: Json = False) -> None:
    """Print what a run would make, why, and the teacher's cost.

    A stage is a HIT if it is in the store, else a MISS with what changed. Nothing is started or written.
    """
    import asyncio

    from retort.commands.plan import plan as make_plan
    from retort.recipes import load_config

    planned = asyncio.run(make_plan(load_config(config, set_ or [])))
    tell(planned, planned.lines(), json_)


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


def batch_export(config: ConfigPath, file: BatchFile, set_: Overrides = None) -> None:
    """Write a request for every completion that the ledger lacks."""
    import asyncio

    from retort.commands.batch import export_requests
    from retort.recipes import load_config

    count = asyncio.run(export_requests(load_config(config, set_ or []), file))
    print(f"{count} requests in {file}", file=sys.stderr)


def batch_import(config: ConfigPath, file: BatchFile, set_: Overrides = None) -> None:
    """Put the answers into the ledger; the next run finds them there. What is no answer is told, and exit 1."""
    import asyncio

    from retort.commands.batch import import_answers
    from retort.recipes import load_config

    taken, known, bad = asyncio.run(import_answers(load_config(config, set_ or []), file))
    for line in bad:
        say(f"{line.place}: {line.reason}: {line.detail}", file=sys.stderr)
    print(f"{taken} answers taken, {known} known before, {len(bad)} lines left out", file=sys.stderr)
    if bad:
        raise typer.Exit(1)


def maintain(
    config: ConfigPath,
    set_: Overrides = None,
    nights: Annotated[int, typer.Option("--nights", min=0, help="Runs of each config that are kept.")] = 7,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="What was used since is kept; longer than any run takes.")
    ] = 24,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; else only say what would go.")] = False,
    json_: Json = False,
) -> None:
    """Free what no registered student and no recent run rests on.

    Completions that were paid for are never deleted.
    """
    from retort.commands.maintain import maintain as sweep
    from retort.recipes import load_config

    done = sweep(load_config(config, set_ or []), nights=nights, grace_hours=grace_hours, delete=delete)
    tell(done, done.lines(), json_)
