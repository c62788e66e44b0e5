"""Benchmark: what a step costs beside its work, in a new child process and in one that has stayed.

    .venv/bin/python benchmarks/warm.py [CONFIG] [--set FIELD=VALUE ...]

Goes through the steps of a run in a fresh store, one after the other. Each is made four times: in a new child process
(cold), in the child that waits at its place (warm), and twice in this process, where all libraries are loaded; the
faster of these two is its work. What a child takes beyond that is what it costs: its start, imports, CUDA's start, the
way there and back. Prints medians and maxima over the steps of each kind; the first warm step of a kind still loads
what only that kind needs. By default the run is one of SNIPS with recorded labels, cut down to a minute of work. GPUs
are used if there are any. Prefect's own share, 0.1 s for a step, is not in it.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from typing import Any

from retort.recipes import load_config, recipe_of
from retort.recipes.execute import make
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store.opening import open_store
from tasks.child_process import end_waiting, in_child, warm_up
from tasks.gpu_locks import Place
from tasks.gpu_slots import gpus_for

SMALL = (
    *("data.limit=100", "method.stages=1", "method.fine_tuning.kind=never", "baselines=[]", "evaluation.resamples=200"),
    *("student.training.epochs=1", "student.training.min_updates=0"),
)
SECONDS = 600.0
Times = dict[str, list[tuple[float, float, float]]]
"""(work, cold, warm) seconds of each step, by kind."""


def main() -> None:
    given = arguments()
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as folder:
        sets = [*([] if given.config else SMALL), *given.set, f"store.root={folder}/store", "tracking=null"]
        recipe_config = load_config(given.config or "examples/snips.yaml", sets)
        config = recipe_of(recipe_config).resolve(recipe_config)
        warm_up()
        asyncio.run(run(config, times))
    print(f"{'':18}{'steps':>6}{'work':>9}{'cold: beside it':>24}{'warm: beside it':>24}")
    for kind, measured in times.items():
        print(line(kind, measured))
    print(line("all", [one for measured in times.values() for one in measured]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", metavar="CONFIG", nargs="?")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    return parser.parse_args()


async def run(config: Any, times: Times) -> None:
    store, settings = open_store(config.store), config.run_settings

    async def seconds(step: Step, place: Place, *, child: bool, stay: bool = False) -> float:
        store.discard(step.artifact_kind, step.key)
        started = time.perf_counter()
        if child:
            await in_child(make, settings, step, 0, timeout_seconds=SECONDS, place=place if stay else None)
        else:
            make(settings, step, 0, lambda *_: None)
        return time.perf_counter() - started

    async def do(step: Step) -> ArtifactRef:
        if (found := store.find(step.artifact_kind, step.key)) is None:
            async with gpus_for(step, config.execution) as place:
                cold = await seconds(step, place, child=True)
                warm = await seconds(step, place, child=True, stay=True)
                work = min([await seconds(step, place, child=False) for _ in range(2)])
            times[step.kind].append((work, cold, warm))
            found = store.find(step.artifact_kind, step.key)
        assert found is not None
        return store.ref(found)

    await recipe_of(config).distill(config, do, None)
    await end_waiting()


def line(title: str, measured: list[tuple[float, float, float]]) -> str:
    work = statistics.median(one[0] for one in measured)
    cold, warm = ([one[at] - one[0] for one in measured] for at in (1, 2))
    cells = (f"{statistics.median(beside):7.2f} s, most {max(beside):5.2f} s" for beside in (cold, warm))
    return f"{title:18}{len(measured):6}{work:7.2f} s" + "".join(f"{cell:>24}" for cell in cells)


if __name__ == "__main__":
    main()
