"""The command line of what comes before a run: `new`, `doctor`, `schema`, `prompt`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from retort.cli.options import ConfigPath, Json, Overrides
from retort.io.terminal import printable, say, say_command


def new(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Your rows (CSV, JSON lines, Parquet ...), some with a label.")
    ],
    unlabeled: Annotated[
        str | None,
        typer.Option(
            "--unlabeled", metavar="FILE", help="Rows to learn from, without labels; left out: those of FILE."
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="FILE", help="Test rows, with labels; left out: some of those in FILE."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="WHAT",
            help="MODEL on a hub or in a folder, MODEL@https://server/v1, a file of completions, or finetuned: no "
            "language model, but a student trained on the rows with labels.",
        ),
    ] = None,
    key: Annotated[
        str, typer.Option("--key", metavar="NAME", help="The environment variable with the server's API key.")
    ] = "OPENAI_API_KEY",
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            metavar="MODEL",
            help="On a hub, in a folder, or pkg:PACKAGE/FOLDER. Left out: one that suits problem and language.",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="COLUMN", help="The texts. Left out: recognized.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="The labels. Left out: recognized.")
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Names of the rows. Left out: recognized.")
    ] = None,
    problem: Annotated[
        Literal["classification", "multi-label", "entities", "slots", "constituency", "text", "regression", "chat"]
        | None,
        typer.Option(
            "--problem",
            metavar="KIND",
            help="What a label is: classification, multi-label, entities, slots, constituency, text, regression or "
            "chat. Left out: recognized.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="A new folder. Left out: FILE's name.")
    ] = None,
) -> None:
    """Look at your data, divide it, and write a commented YAML file."""
    from retort.commands.new import Request, create, teacher_section

    if teacher is None and sys.stdin.isatty():
        teacher = typer.prompt(
            "The teacher: MODEL on a hub or in a folder, MODEL@https://server/v1, or a file of completions",
            default="finetuned",
            err=True,
        )
    folder = out or Path(Path(file).name.split(".")[0])
    asked = {"text": text, "label": label, "id": id_, "problem": problem}
    section = teacher_section(teacher or "finetuned", key)
    created = create(Request(file, unlabeled, test, folder, asked, section, student))
    for line in created.lines:
        say(line)
    say(f"\nWritten:  {created.config}")
    say_command("Next:     ", ["retort", "doctor", str(created.config)])


def doctor(config: ConfigPath, set_: Overrides = None, json_: Json = False) -> None:
    """Check all that a run would need, before anything is spent."""
    from retort.commands.doctor import examine
    from retort.recipes import load_config

    findings = list(examine(load_config(config, set_ or [])))
    if json_:
        print(json.dumps({"findings": [finding.model_dump() for finding in findings]}))
    else:
        for finding in findings:
            say(f"{finding.verdict:5}  {finding.what}: {finding.detail}")
    if any(finding.verdict == "wrong" for finding in findings):
        raise typer.Exit(2)


def schema(
    kind: Annotated[str, typer.Option("--kind", help="Of which recipe's file: mckd or soft-label.")] = "mckd",
) -> None:
    """Print the JSON Schema of the YAML file."""
    from retort.errors import ConfigError
    from retort.recipes import config_models

    models = config_models()
    if kind not in models:
        raise ConfigError(f"--kind {kind}: no recipe is called that; allowed: {', '.join(models)}")
    print(json.dumps(models[kind].model_json_schema(), indent=2))


def prompt(
    config: ConfigPath,
    set_: Overrides = None,
    row: Annotated[str | None, typer.Option("--row", help="The id of a row; left out, the pool's first.")] = None,
    json_: Json = False,
) -> None:
    """Print the exact prompt of a row, and its number of tokens.

    Also the length of the prefix that all rows share.
    """
    import asyncio

    from retort.commands.prompt import show_prompts
    from retort.recipes import load_config

    for shown in asyncio.run(show_prompts(load_config(config, set_ or []), row)):
        if json_:
            print(shown.model_dump_json())
        else:
            print(printable(shown.text) if sys.stdout.isatty() else shown.text)
            print(f"-- {shown.teacher}: {shown.measure}", file=sys.stderr)
