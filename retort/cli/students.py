"""The command line of what uses a student: `promote`, `rollback`, `predict`, `export`, `serve`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from retort.cli.options import ConfigPath, Json, Model, Overrides, Registry, tell
from retort.cli.workflow import become
from retort.io.terminal import say, say_command


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
    tell(promotion, [promotion.sentence], json_)
    if settings.tracking and not json_:  # without it there is no registry to promote in
        address = without_secrets(tracking_uri(settings.tracking))
        say_command("Serve it: ", ["retort", "serve", f"models:/{promotion.model}@champion", "--tracking", address])


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
    tell(promotion, [promotion.sentence], json_)


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
