"""`retort run` lands here: check, start the flow in this process, show bars and the table, print what machines read.

    python -m flows.launch CONFIG OPTIONS_AS_JSON

Checks come before Prefect is imported, which takes 3 s, and before its server is started, which takes 15 s.
"""

import gc

gc.disable()  # what imports make stays for good; looking through it again and again meanwhile costs half a second

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retort.commands.plan import plan, repair
from retort.config.loading import load_job
from retort.config.soft_label import Job, SoftLabelConfig
from retort.errors import RetortError
from retort.recipes.mckd.checks import check
from retort.recipes.scope import Scope
from retort.recipes.soft_label.checks import check_scores
from retort.records.base import Record
from tasks.child_process import warm_up

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.mckd import Finished
    from flows.soft_label import FinishedScores
    from retort.report.mckd.summary import Summary
    from retort.report.soft_label.summary import ScoreSummary

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # here, errors are told once, in a sentence; the UI has logs
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default of 20 s is too short for a slow disk
}


class RunOptions(Record):
    overrides: tuple[str, ...] = ()
    scope: Scope = Scope()
    json_output: bool = False
    repair: bool = False


def main() -> None:
    """Exit codes as in `retort.errors`; 130 after Ctrl-C."""
    path, options = sys.argv[1], RunOptions.model_validate_json(sys.argv[2])
    started = time.monotonic()
    try:
        config = load_job(path, options.overrides)
        if options.repair:
            for fault in asyncio.run(repair(config)):
                print(f"made again: {fault}", file=sys.stderr)
        config = check_scores(config) if isinstance(config, SoftLabelConfig) else check(config)
        if any(stage.status == "MISS" for stage in asyncio.run(plan(config)).stages):
            warm_up()  # torch is imported there while Prefect is imported here
        finished = run(config, path, options)
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; what is finished is kept: the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    tell(finished, options, time.monotonic() - started)
    gc.freeze()  # nor need it be looked through once more at the end


def run(config: Job, path: str, options: RunOptions) -> "Finished | FinishedScores":
    """The flow, with progress bars on standard error."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tasks.progress import TERMINAL

    flow = flow_of(config)
    thaw()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        TERMINAL.set(bars)
        scope = {name: value for name, value in options.scope.model_dump(mode="json").items() if value}
        finished: Finished | FinishedScores = asyncio.run(flow(path, overrides=list(options.overrides), **scope))
    return finished


def flow_of(config: Job) -> Callable[..., Any]:
    """The flow of this kind of config, which need not load and check it once more."""
    if isinstance(config, SoftLabelConfig):
        from flows import soft_label as score

        score.CHECKED.set(config)
        return score.score
    from flows import mckd

    mckd.CHECKED.set(config)
    return mckd.mckd


def thaw() -> None:
    """From here on garbage is collected, but not looked for in what was imported."""
    gc.freeze()
    gc.enable()


def tell(finished: "Finished | FinishedScores", options: RunOptions, seconds: float) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    made = sum(stage.status == "MADE" for stage in finished.stages)
    told = f"{len(finished.stages)} stages, {made} made and {len(finished.stages) - made} found in the store, "
    told += f"in {seconds:.0f} s."
    if finished.summary:
        console.print(rendered(finished.summary))
        told += f" Report: retort report CONFIG; final student: {finished.summary.model_uri}"
    console.print(told, highlight=False)
    if options.json_output:
        print(json.dumps(as_json(finished, seconds)))


def rendered(summary: "Summary | ScoreSummary") -> "RenderableType":
    """As a table in the terminal."""
    from retort.report.mckd.summary import Summary

    if isinstance(summary, Summary):
        from retort.report.mckd.terminal import render_terminal

        return render_terminal(summary)
    from retort.report.soft_label.terminal import render_score_terminal

    return render_score_terminal(summary)


def as_json(finished: "Finished | FinishedScores", seconds: float) -> dict[str, object]:
    """The shape that other programs may rely on (README, `run --json`)."""
    return {
        "run_id": finished.run_id,
        "status": "COMPLETED",
        "stages": [stage.model_dump() for stage in finished.stages],
        "final": finished.summary and final_as_json(finished.summary),
        "seconds": round(seconds, 2),
    }


def final_as_json(summary: "Summary | ScoreSummary") -> dict[str, object]:
    """Of the score flow `stage` is the arm of the exported student, and `scores` are by test set."""
    from retort.report.mckd.summary import Summary

    if not isinstance(summary, Summary):
        arm = summary.scores[summary.student["arm"]]
        tests = {rows: {metric: one.model_dump() for metric, one in arm[rows].rows.items()} for rows in summary.tests}
        return {"stage": summary.student["arm"], "scores": tests, "model": summary.model_uri}
    return {
        "stage": summary.kept_stage,
        "scores": {
            metric: score.model_dump(include={"value", "low", "high", "n"})
            for metric, score in summary.final.scores.items()
        },
        "model": summary.model_uri,
    }


if __name__ == "__main__":
    main()
