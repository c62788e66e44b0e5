"""The program behind `retort run`: checks, runs the flow in this process with progress on standard error, and prints
the result on standard output: tables, or with --json one object for programs (the tables then go to standard error).

    python -m flows.launch CONFIG OPTIONS_AS_JSON

Checks come before importing Prefect, which takes 3 s, and before starting its server, which takes 15 s.
"""

import gc

gc.disable()  # imported objects live forever; scanning them again and again during the imports costs half a second

import asyncio
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from retort.commands.plan import repair
from retort.config import RecipeConfig
from retort.errors import RetortError
from retort.io.terminal import Spoken, printable, say, say_command
from retort.recipes import load_config, recipe_of
from retort.recipes.scope import Scope
from retort.recipes.walk import missing_steps
from retort.records.base import Record
from retort.steps.base import Step
from retort.tracking.address import tracking_uri, without_secrets
from tasks.ahead import begin_engine, end_engine
from tasks.child_process import warm_up

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segments

    from flows.run import Finished

SETTINGS = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; infra/setup_server.py takes 90 s of silence for death
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # errors are printed once, as a sentence; the UI has logs
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default of 20 s is too short for a slow disk
}


class RunOptions(Record):
    overrides: tuple[str, ...] = ()
    scope: Scope = Scope()
    json_output: bool = False
    quiet: bool = False
    repair: bool = False


def main() -> None:
    """Exit codes as in `retort.errors`; 130 after Ctrl-C."""
    logging.lastResort = Spoken(logging.WARNING)
    path, options = sys.argv[1], RunOptions.model_validate_json(sys.argv[2])
    started = time.monotonic()
    try:
        config = load_config(path, options.overrides)
        if options.repair:
            for fault in asyncio.run(repair(config)):
                say(f"made again: {fault}", file=sys.stderr)
        config = recipe_of(config).check(config)
        if missing := asyncio.run(missing_steps(recipe_of(config), config)):
            warm_up()  # imports torch in the server process while this process imports Prefect
        finished = run(config, path, options, missing if options.scope == Scope() else ())
    except RetortError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; what is finished is kept: the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    finally:
        asyncio.run(end_engine())
    seconds = time.monotonic() - started
    if not (options.json_output and options.quiet):
        arguments = [path, *(f"--set={field}" for field in options.overrides)]
        with contextlib.redirect_stdout(sys.stderr if options.json_output else sys.stdout):
            print_result(config, finished, arguments, seconds)
    if options.json_output:
        print(json.dumps(as_json(finished, seconds)))
    gc.freeze()  # spares a last scan at exit


def run(config: RecipeConfig, path: str, options: RunOptions, missing: Sequence[Step]) -> "Finished":
    """Run the flow, with its progress on standard error. `missing` are the steps that it will make, in order, if they
    are known."""
    with in_terminal(quiet=options.quiet):
        begin_engine(config.run_settings, missing)
        flow = flow_of(config)
        thaw()
        scope = {name: value for name, value in options.scope.model_dump(mode="json").items() if value}
        finished: Finished = asyncio.run(flow(path, overrides=list(options.overrides), **scope))
    return finished


@contextlib.contextmanager
def in_terminal(*, quiet: bool = False) -> Iterator[None]:
    """Within it, Prefect may be imported and run. Progress goes to standard error: bars in a terminal, else a line for
    every step made."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tasks.progress import TERMINAL

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True, quiet=quiet)
    bars = Progress(*columns, console=console, transient=True)
    TERMINAL.set(bars)
    with bars if console.is_terminal else contextlib.nullcontext():
        yield


def flow_of(config: RecipeConfig) -> Callable[..., Any]:
    """The flow of the config's recipe. The flow will not load and check the config again."""
    from flows import run

    run.CHECKED.set(config)
    name = recipe_of(config).kind.replace("-", "_")
    own = importlib.util.find_spec(f"flows.{name}")
    flow: Callable[..., Any] = getattr(importlib.import_module(own.name), name) if own else run.run
    return flow


def thaw() -> None:
    """Turn garbage collection on, but exclude everything that was imported."""
    gc.freeze()
    gc.enable()


def print_result(config: RecipeConfig, finished: "Finished", arguments: list[str], seconds: float) -> None:
    """Tables, what was made, and what to do next. `arguments` are those of a command that is about this run."""
    from rich.console import Console

    console = Console(highlight=False)
    summary = finished.summary
    if summary:
        console.print(harmless(console, recipe_of(config).render(summary, console.width)))
    made = sum(stage.status == "MADE" for stage in finished.stages)
    say(f"{len(finished.stages)} stages, {made} made and {len(finished.stages) - made} found, in {seconds:.0f} s.")
    if summary is None:
        return
    say(f"\nStudent:  {summary.model_uri}")
    say_command("Report:   ", ["retort", "report", *arguments])
    if config.tracking:
        address = without_secrets(tracking_uri(config.tracking))
        say(f"MLflow:   {address}, experiment {config.tracking.experiment or config.name}")
    if summary.gate and summary.gate.outcome in ("passed", "first"):
        say_command("Promote:  ", ["retort", "promote", *arguments])
    say_command("Use it:   ", ["retort", "predict", summary.model_uri, "FILE"])


def harmless(console: "Console", rendered: "RenderableType") -> "Segments":
    """What is rendered, with names and labels as `printable` writes them; the console's own colors stay."""
    from rich.segment import Segment, Segments

    parts = console.render(rendered)
    return Segments([part if part.control else Segment(printable(part.text), part.style) for part in parts])


def as_json(finished: "Finished", seconds: float) -> dict[str, object]:
    """The output of `run --json`. Other programs rely on its shape (see README)."""
    return {
        "run_id": finished.run_id,
        "status": "COMPLETED",
        "stages": [stage.model_dump() for stage in finished.stages],
        "final": finished.summary and finished.summary.final_as_json(),
        "seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    main()
