"""Arguments and options that several commands have, and how they give their answers. Imports nothing that starts
slowly."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from retort.io.terminal import say

if TYPE_CHECKING:
    from retort.records.base import Record

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


def tell(answer: "Record", lines: Iterable[str], as_json: bool) -> None:
    """Print the answer for machines, or its lines for people."""
    if as_json:
        print(answer.model_dump_json())
    else:
        say("\n".join(lines))
