"""The command line: all commands on one page. Their declarations are in the modules beside it, their work is in
`retort/commands/` and below. To start fast, a declaration imports the work inside its function."""

import sys
from typing import Annotated

import typer

from retort.cli import preparation, results, runs, students
from retort.io.terminal import say


def _print_version(requested: bool) -> None:
    if requested:
        from retort import __version__

        print(f"retort {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than printing the help
    help="Distill a large language model into small, cheap students. "
    "A first run: `retort new FILE`, then doctor, plan, run, report, promote and serve.",
    epilog="Exit codes: 0 done, 1 failed, 2 the config or the data is wrong, 3 the gate said no.",
)


@app.callback()
def main_options(version: Version = False) -> None:
    """What may stand before the command's name."""


app.command(short_help="Look at your data and write a commented YAML file.")(preparation.new)
app.command(short_help="Do it; what is in the store already is not made again.")(runs.run)
app.command(short_help="What a run would make, why, and the teacher's cost.")(runs.plan)
app.command(short_help="One run for each value of a field, side by side.")(runs.sweep)
app.command()(results.report)
app.command(short_help="Compare two students on the same test rows.")(results.compare)
app.command(short_help="Check what a run needs, before anything is spent.")(preparation.doctor)
app.command(short_help="Export rows for people to label, and import their labels.")(results.review)
app.command()(preparation.schema)
app.command(short_help="Print the exact prompt of a row.")(preparation.prompt)
app.command(short_help="Make the last run's student the champion.")(students.promote)
app.command(short_help="Let the champion before reign again.")(students.rollback)
app.command(short_help="Label a file with a student.")(students.predict)
app.command(short_help="Write a student as a Hugging Face folder, and as ONNX.")(students.export)
app.command(short_help="Answer over HTTP with a student.")(students.serve)
app.command(short_help="Where a student came from, or the history of one row.")(results.why)
app.command(short_help="Free what nothing rests on any more.")(runs.maintain)

batch = typer.Typer(no_args_is_help=True, help="Ask an endpoint teacher through OpenAI batch files.")
batch.command("export")(runs.batch_export)
batch.command("import")(runs.batch_import)
app.add_typer(batch, name="batch")


def main() -> None:
    """The entry point. Turns our errors into a one-sentence message and an exit code."""
    from retort.errors import RetortError

    try:
        app(prog_name="retort")
    except RetortError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
