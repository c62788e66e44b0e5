"""The command. Starts fast: every import that is not needed to print the help lies in a command."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than the help to print
    help="Distil a large language model into small, cheap students.",
    epilog="Exit codes: 0 done, 1 failed, 2 the config or the data is wrong, 3 the gate said no.",
)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field: method.stages=2. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]


@app.command()
def run(
    config: ConfigPath,
    set_: Overrides = None,
    json_: Json = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Check every stored file that the run would use; make damaged ones again.")
    ] = False,
) -> None:
    """Run the distillation. What is in the store already is not made again."""
    root = _checkout()
    options = {"overrides": set_ or [], "json_output": json_, "repair": repair}
    # Flows stand above this package and are not installed with it, so they run in an interpreter of their own.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "flows.launch", config, json.dumps(options)]
    os.execve(sys.executable, command, environment)


@app.command()
def plan(config: ConfigPath, set_: Overrides = None, json_: Json = False) -> None:
    """Print which stages a run would make, why, and the teacher's cost.

    A stage is a HIT if it is in the store, else a MISS with what changed. Nothing is started or written.
    """
    import asyncio

    from retort.configfile import load_config
    from retort.planning import plan as make_plan

    planned = asyncio.run(make_plan(load_config(config, set_ or [])))
    if json_:
        print(planned.model_dump_json())
        return
    width = max(len(stage.name) for stage in planned.stages)
    for stage in planned.stages:
        print(f"{stage.status:4}  {stage.name:{width}}  {', '.join(stage.changed)}".rstrip())
    misses = sum(stage.status == "MISS" for stage in planned.stages)
    print(f"{misses} of {len(planned.stages)} stages would be made.")
    for line in teacher_lines(planned.teacher):
        print(line)


@app.command()
def report(
    config: ConfigPath,
    set_: Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write report.html, report.md and the picture to.")
    ] = Path(".retort/report"),
) -> None:
    """Write the report of the last run of this config."""
    from retort.configfile import load_config
    from retort.preflight import refusals, usable_store
    from retort.report.reading import copy_report

    settings = load_config(config, set_ or [])
    with refusals():
        for path in copy_report(usable_store(settings), settings, out):
            print(path)


@app.command()
def doctor(config: ConfigPath, set_: Overrides = None, json_: Json = False) -> None:
    """Check everything that a run would need, before anything is spent."""
    from retort.configfile import load_config
    from retort.doctor import examine

    findings = list(examine(load_config(config, set_ or [])))
    if json_:
        print(json.dumps({"findings": [finding.model_dump() for finding in findings]}))
    else:
        for finding in findings:
            print(f"{finding.verdict:5}  {finding.what}: {finding.detail}")
    if any(finding.verdict == "wrong" for finding in findings):
        raise typer.Exit(2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file."""
    from retort.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command()
def prompt(
    config: ConfigPath,
    set_: Overrides = None,
    row: Annotated[str | None, typer.Option("--row", help="The id of a row; left out, the pool's first.")] = None,
    json_: Json = False,
) -> None:
    """Print the exact prompt of a row, its number of tokens and the length of the prefix that all rows share."""
    from retort.configfile import load_config
    from retort.prompting import show_prompts

    for shown in show_prompts(load_config(config, set_ or []), row):
        if json_:
            print(shown.model_dump_json())
        else:
            print(shown.text)
            print(f"-- {shown.teacher}: {shown.measure}", file=sys.stderr)


batch = typer.Typer(no_args_is_help=True, help="Ask an endpoint teacher through OpenAI batch files.")
app.add_typer(batch, name="batch")
BatchFile = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines in OpenAI's batch format.")]


@batch.command("export")
def batch_export(config: ConfigPath, file: BatchFile, set_: Overrides = None) -> None:
    """Write a request for every completion that the ledger lacks."""
    from retort.batches import export_requests
    from retort.configfile import load_config

    count = export_requests(load_config(config, set_ or []), file)
    print(f"{count} requests in {file}", file=sys.stderr)


@batch.command("import")
def batch_import(config: ConfigPath, file: BatchFile, set_: Overrides = None) -> None:
    """Put the answers into the ledger; the next run finds them there. What is no answer is told, and exit 1."""
    from retort.batches import import_answers
    from retort.configfile import load_config

    taken, known, bad = import_answers(load_config(config, set_ or []), file)
    for line in bad:
        print(f"{line.place}: {line.reason}: {line.detail}", file=sys.stderr)
    print(f"{taken} answers taken, {known} known before, {len(bad)} lines left out", file=sys.stderr)
    if bad:
        raise typer.Exit(1)


def teacher_lines(teacher: dict[str, Any]) -> list[str]:
    """A plan's forecast, for people."""
    lines = [f"teacher ({teacher['kind']}): {teacher['requests']} requests, {teacher['money']:.2f} to pay"]
    for one in [teacher, *teacher.get("members", [])]:
        if "prompt_tokens" not in one:
            continue
        about = "" if one["exact_tokens"] else "about "
        seconds = "not known before the first run" if one["seconds"] is None else f"about {one['seconds']:.0f} s"
        lines.append(
            f"  {one['kind']}: {one['known']} completions known; {about}{one['prompt_tokens']:,} prompt tokens, "
            f"{one['cached_tokens']:,} of them in the shared prefix; about {one['completion_tokens']:,} completion "
            f"tokens; time {seconds}"
            if one["requests"]
            else f"  {one['kind']}: {one['known']} completions known"
        )
    return lines


def _checkout() -> Path:
    """The folder that holds `flows/`: here, or where this package was installed from."""
    from retort.errors import ConfigError

    for root in (Path.cwd(), Path(__file__).parent.parent):
        if (root / "flows" / "launch.py").is_file():
            return root
    raise ConfigError("no folder flows/ here: run this from a checkout of the project")


def main() -> None:
    """Entry point: turns our errors into one sentence and an exit code."""
    from retort.errors import RetortError

    try:
        app(prog_name="retort")
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
