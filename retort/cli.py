"""The command line. To start fast, commands import what printing the help does not need."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from retort.commands import results
from retort.commands.options import ConfigPath, Json, Model, Overrides, Registry
from retort.io.terminal import printable, say, say_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than printing the help
    help="Distill a large language model into small, cheap students. "
    "A first run: `retort new FILE`, then doctor, plan, run, report, promote and serve.",
    epilog="Exit codes: 0 done, 1 failed, 2 the config or the data is wrong, 3 the gate said no.",
)


def _print_version(requested: bool) -> None:
    if requested:
        from retort import __version__

        print(f"retort {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def main_options(version: Version = False) -> None:
    """What may stand before the command's name."""


@app.command(short_help="Look at your data and write a commented YAML file.")
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


@app.command(short_help="Do it; what is in the store already is not made again.")
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


@app.command(short_help="What a run would make, why, and the teacher's cost.")
def plan(config: ConfigPath, set_: Overrides = None, json_: Json = False) -> None:
    """Print what a run would make, why, and the teacher's cost.

    A stage is a HIT if it is in the store, else a MISS with what changed. Nothing is started or written.
    """
    import asyncio

    from retort.commands.plan import plan as make_plan
    from retort.recipes import load_config

    planned = asyncio.run(make_plan(load_config(config, set_ or [])))
    if json_:
        print(planned.model_dump_json())
        return
    width = max(len(stage.name) for stage in planned.stages)
    for stage in planned.stages:
        say(f"{stage.status:4}  {stage.name:{width}}  {', '.join(stage.changed)}".rstrip())
    misses = sum(stage.status == "MISS" for stage in planned.stages)
    say(f"{misses} of {len(planned.stages)} stages would be made.")
    for line in teacher_lines(planned.teacher):
        say(line)


app.command(short_help="One run for each value of a field, side by side.")(results.sweep)
app.command()(results.report)
app.command(short_help="Compare two students on the same test rows.")(results.compare)


@app.command(short_help="Check what a run needs, before anything is spent.")
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


@app.command(short_help="Export rows for people to label, and import their labels.")
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
        told, lines = exported.model_dump_json, export_lines(exported)
    else:
        imported = import_answers(settings, import_, by, gold)
        told, lines = imported.model_dump_json, import_lines(imported, gold)
    if json_:
        print(told())
    else:
        say("\n".join(lines))


@app.command()
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


@app.command(short_help="Print the exact prompt of a row.")
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


@app.command(short_help="Make the last run's student the champion.")
def promote(
    config: ConfigPath,
    set_: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate says; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the records.")] = None,
    json_: Json = False,
) -> None:
    """Make the last run's student the champion, if the gate lets it.

    The gate judged it against the one that reigns now.
    """
    from retort.errors import ConfigError
    from retort.recipes import load_config
    from retort.tracking.address import tracking_uri, without_secrets
    from retort.tracking.promotion import promote as make_champion

    if force != (reason is not None):
        raise ConfigError("--force needs --reason TEXT, and --reason is for --force only")
    settings = load_config(config, set_ or [])
    promotion = make_champion(settings, forced_because=reason)
    if json_:
        print(promotion.model_dump_json())
        return
    say(promotion.sentence)
    if settings.tracking:  # without it there is no registry to promote in
        address = without_secrets(tracking_uri(settings.tracking))
        say_command("Serve it: ", ["retort", "serve", f"models:/{promotion.model}@champion", "--tracking", address])


@app.command(short_help="Let the champion before reign again.")
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The registered model's name.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the records.")],
    tracking: Annotated[
        str | None,
        typer.Option(
            "--tracking",
            metavar="URI",
            help="MLflow's address, tracking.uri of the YAML file; left out: $MLFLOW_TRACKING_URI.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Let the version reign again that the champion replaced.

    Twice: the one before that.
    """
    from retort.errors import ConfigError
    from retort.tracking.promotion import rollback as go_back

    address = tracking or os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise ConfigError("no registry is named: give --tracking URI, or set MLFLOW_TRACKING_URI")
    promotion = go_back(address, model, reason)
    if json_:
        print(promotion.model_dump_json())
    else:
        say(promotion.sentence)


@app.command(short_help="Label a file with a student.")
def predict(
    model: Model,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A file, folder, glob or s3:// address; - is JSON lines on standard input."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help=".parquet or .jsonl; left out, standard output.")
    ] = None,
    tracking: Registry = None,
    text: Annotated[str, typer.Option("--text", metavar="FIELD", help="The field that holds the text.")] = "text",
    id_: Annotated[
        str,
        typer.Option("--id", metavar="FIELD", help="The field that holds the row's id; without it, the text's digest."),
    ] = "id",
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Those of every class too; for slots, of every intent. Not for texts, trees and entities.",
        ),
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto: a GPU if there is one.")
    ] = "auto",
    max_bad: Annotated[
        float, typer.Option("--max-bad", min=0, max=1, help="Exit 1 if a larger share of the rows had to be set aside.")
    ] = 0.1,
    shard_rows: Annotated[
        int | None,
        typer.Option("--shard-rows", min=1, help="Label so many rows (at least) each in a process of its own."),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="NAME", help="The Prefect work pool whose workers do the shards.")
    ] = None,
) -> None:
    """Label texts with a trained student, as JSON lines or Parquet.

    A row that cannot be labeled is set aside: told on standard error with the reason, and counted.
    """
    from retort.errors import ConfigError
    from retort.serving.files import PredictionJob, dump_job, predict_file
    from retort.serving.texts import Fields

    job = PredictionJob(model, file, out, tracking, Fields(text, id_), probabilities, device, max_bad)
    if pool and shard_rows is None:
        raise ConfigError(f"--pool '{pool}': give --shard-rows as well, the number of rows for each run of the pool")
    if shard_rows is not None:
        become("flows.predict", dump_job(job), str(shard_rows), *([pool] if pool else []))
    predict_file(job)


@app.command(short_help="Write a student as a Hugging Face folder, and as ONNX.")
def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too, for encoders.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="And model.int8.onnx, with --onnx.")] = False,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="FILE", help="Texts on which labels and speed of the graphs are compared."),
    ] = None,
    text: Annotated[str, typer.Option("--text", metavar="FIELD", help="The field that holds the text.")] = "text",
    tracking: Registry = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Then push the folder to this private repository of the hub."),
    ] = None,
) -> None:
    """Write a student as a Hugging Face folder and as ONNX graphs.

    The folder has cards of the model and of its data.
    """
    from retort.errors import ConfigError
    from retort.lineage.export import Export
    from retort.lineage.export import export as write
    from retort.serving.texts import Fields

    if (int8 or check) and not onnx:
        raise ConfigError("--int8 and --check are about the graph, and go with --onnx")
    for line in write(Export(model, folder, onnx, int8, check, Fields(text, "id"), tracking, push)):
        say(line)


@app.command(short_help="Answer over HTTP with a student.")
def serve(
    model: Model,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    tracking: Registry = None,
    clients: Annotated[int, typer.Option("--clients", min=1, help="Connections at once; further ones get 503.")] = 128,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="An answer that takes longer is a 504.")
    ] = 120,
    poll: Annotated[
        float,
        typer.Option("--poll", min=0.1, metavar="SECONDS", help="How often to ask where the alias of MODEL points."),
    ] = 30,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65535, help="Also answer /metrics and health there, without the token."
        ),
    ] = None,
) -> None:
    """Answer over HTTP with a trained student.

    POST /predict {"texts": [...]}, GET /healthz. SIGTERM ends it.

    If MODEL is an alias (models:/NAME@champion), the version that it moves to is loaded and takes over, without a
    restart. Clients must send the token in RETORT_SERVE_TOKEN as Authorization: Bearer TOKEN, if it is set; without
    one, only this machine can be let in.
    """
    from retort.serving.server import Serving
    from retort.serving.server import serve as serve_student

    serve_student(Serving(model, host, port, tracking, clients, timeout, poll, metrics_port))


@app.command(short_help="Where a student came from, or the history of one row.")
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
        told, lines = lineage.model_dump_json, lineage_lines(lineage)
    else:
        found = history(traced, row)
        told, lines = found.model_dump_json, history_lines(found)
    if json_:
        print(told())
    else:
        say("\n".join(lines))


@app.command(short_help="Free what nothing rests on any more.")
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
    if json_:
        print(done.model_dump_json())
        return
    for line in done.lines():
        say(line)


batch = typer.Typer(no_args_is_help=True, help="Ask an endpoint teacher through OpenAI batch files.")
app.add_typer(batch, name="batch")
BatchFile = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines in OpenAI's batch format.")]


@batch.command("export")
def batch_export(config: ConfigPath, file: BatchFile, set_: Overrides = None) -> None:
    """Write a request for every completion that the ledger lacks."""
    import asyncio

    from retort.commands.batch import export_requests
    from retort.recipes import load_config

    count = asyncio.run(export_requests(load_config(config, set_ or []), file))
    print(f"{count} requests in {file}", file=sys.stderr)


@batch.command("import")
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


def teacher_lines(teacher: dict[str, Any]) -> list[str]:
    """A plan's forecast as text."""
    money = "the price is not forecast" if teacher["money"] is None else f"{teacher['money']:.2f} to pay"
    lines = [f"teacher ({teacher['kind']}): {teacher['requests']} requests, {money}"]
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


def become(module: str, *arguments: str) -> NoReturn:
    """Run a module of the flows in place of this program. This package may not import them, which are in a layer above
    it, so they run in a separate interpreter."""
    root = workflow_root()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    # Without -P, a folder flows/ or tasks/ of the user's would be imported instead; Prefect users often have one.
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment)


def workflow_root() -> Path:
    """The folder with `flows/` and `tasks/`: the checkout here, the installed wheel, or this package's checkout."""
    from retort.errors import ConfigError

    here, package = Path.cwd(), Path(__file__).parent
    if (here / "flows" / "launch.py").is_file() and (here / "retort" / "cli.py").is_file():
        return here
    for root in (package / "_workflow", package.parent):
        if (root / "flows" / "launch.py").is_file():
            return root
    raise ConfigError(f"no folder flows/ belongs to {package}: install Retort anew, or run this from its checkout")


def main() -> None:
    """The entry point. Turns our errors into a one-sentence message and an exit code."""
    from retort.errors import RetortError

    try:
        app(prog_name="retort")
    except RetortError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
