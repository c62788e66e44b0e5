"""Benchmark: what a step costs beside its work, in a new child process and in one that has stayed.

    .venv/bin/python benchmarks/warm.py [CONFIG] [--set FIELD=VALUE ...]

Goes through the steps of a run in a fresh store, one after the other. Each is made several times in turn: in a new
child process (cold), in the child that waits at its place (warm), and in this process, where all libraries are loaded
after the first time (its work). What the fastest child takes beyond the fastest work is what it costs: its start,
imports, CUDA's start, the way there and back. `first` is the same for the first warm child of all, with what no step
had loaded before. `nothing` is a call that does nothing. Prints medians and maxima over the steps of each kind. By
default the run is one of SNIPS with recorded labels, cut down to a few rows. GPUs are used if there are any. What
Prefect costs is not in it; see `orchestration.py`.
"""

import argparse
import asyncio
import gzip
import statistics
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from retort.recipes import load_config, recipe_of
from retort.recipes.base import IN_ORDER
from retort.recipes.execute import make
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store.opening import open_store
from tasks.child_process import end_waiting, in_child
from tasks.gpu_locks import Place
from tasks.gpu_slots import gpus_for

SMALL = (
    *("data.limit=100", "method.stages=1", "method.fine_tuning.kind=never", "baselines=[]", "evaluation.resamples=200"),
    *("student.training.epochs=1", "student.training.min_updates=0"),
)
FEW_ROWS = 50
REPEATS = 3
CALLS = 9
SECONDS = 600.0


class Times(NamedTuple):
    """Seconds of a step in this process, and what a child took beside that."""

    work: float
    cold: float
    warm: float
    first: float


def main() -> None:
    given = arguments()
    times: dict[str, list[Times]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as folder:
        sets = [] if given.config else [*SMALL, *cut_down(Path(folder))]
        sets += [*given.set, f"store.root={folder}/store", "tracking=null"]
        loaded = load_config(given.config or "examples/snips.yaml", sets)
        print(
            f"{'':14}{'steps':>6}{'work':>9}" + "".join(f"{name:>24}" for name in ("cold: beside it", "warm", "first"))
        )
        asyncio.run(run(recipe_of(loaded).resolve(loaded), times))
    for kind, measured in times.items():
        print(line(kind, measured))
    print(line("all", [one for measured in times.values() for one in measured]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", metavar="CONFIG", nargs="?")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    return parser.parse_args()


def cut_down(folder: Path) -> list[str]:
    """A test set of a few rows."""
    with gzip.open("examples/snips/test.jsonl.gz", "rt") as rows:
        (folder / "test.jsonl").write_text("".join(islice(rows, FEW_ROWS)))
    return [f"data.test={folder}/test.jsonl"]


async def nothing() -> Times:
    """A call that does nothing, in a new child and in one that has stayed."""
    times = []
    for place in (None, Place(), Place()):
        started = time.perf_counter()
        await in_child(callable, timeout_seconds=SECONDS, place=place)
        times.append(time.perf_counter() - started)
    cold, first, warm = times
    await end_waiting()
    return Times(0.0, cold, warm, first)


async def run(config: Any, times: dict[str, list[Times]]) -> None:
    store, settings = open_store(config.store), config.run_settings
    await in_child(callable, timeout_seconds=SECONDS)  # waits until the server of the children has imported torch
    print(line("nothing", [await nothing() for _ in range(CALLS)]), flush=True)

    async def seconds(step: Step, place: Place | None, *, in_this_process: bool = False) -> float:
        store.discard(step.artifact_kind, step.key)
        started = time.perf_counter()
        if in_this_process:
            make(settings, step, 0, lambda *_: None)
        else:
            await in_child(make, settings, step, 0, timeout_seconds=SECONDS, place=place)
        return time.perf_counter() - started

    async def do(step: Step) -> ArtifactRef:
        if (found := store.find(step.artifact_kind, step.key)) is None:
            async with gpus_for(step, config.execution) as place:
                rounds = [
                    (
                        await seconds(step, None),
                        await seconds(step, place),
                        await seconds(step, place, in_this_process=True),
                    )
                    for _ in range(REPEATS)
                ]
            cold, warm, work = map(min, zip(*rounds, strict=True))
            times[step.kind].append(Times(work, cold - work, warm - work, rounds[0][1] - work))
            found = store.find(step.artifact_kind, step.key)
        assert found is not None
        return store.ref(found)

    IN_ORDER.set(True)
    await recipe_of(config).distill(config, do, None)
    await end_waiting()


def line(title: str, measured: list[Times]) -> str:
    work, *beside = zip(*measured, strict=True)
    cells = (f"{statistics.median(values):7.2f} s, most {max(values):5.2f} s" for values in beside)
    return f"{title:14}{len(measured):6}{statistics.median(work):7.2f} s" + "".join(f"{cell:>24}" for cell in cells)


if __name__ == "__main__":
    main()
