"""Arguments and options that several commands have. Like the command line, imports nothing that starts slowly."""

from typing import Annotated

import typer

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML file, as `retort new` writes one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Another value for a field: method.stages=2. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="models:/NAME@champion, models:/NAME/3, or the address of a student's artifact."
    ),
]
Registry = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        metavar="URI",
        help="MLflow's address, tracking.uri of the YAML file; left out: $MLFLOW_TRACKING_URI.",
    ),
]
