"""Benchmark: does each stage help? Scores over several seeds, since a single run is within the noise of its seed.

    .venv/bin/python benchmarks/seeds.py examples/snips-finetuned.yaml --seeds 5 [--parallel 2] [--set FIELD=VALUE ...]

Runs a config with `method.seed`, `method.seed` + 1, ..., without Prefect, each in a process of its own. Steps that are
already in the store are not made again. Prints the mean and standard deviation of each metric over seeds, and the
paired difference between the final student and vanilla distillation with the standard error of its mean.

`--independent-intent` is another arm of the study: students decide the intent and each tag independently, so that a
wrong intent does not rule out right slots. Both arms have the same keys, so this one uses a separate store.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from retort.config import MckdConfig
from retort.metrics.format import TITLES
from retort.problems.base import Floats
from retort.problems.slots import Slots, encode
from retort.recipes import load_config
from retort.recipes.base import Do
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.pipeline import ingest_data
from retort.recipes.mckd.recipe import MckdRecipe
from retort.records.base import ArtifactRef, Label
from retort.records.mckd import MckdResult
from retort.steps.base import Step

VANILLA, FINAL = "vanilla-kd", "final student"
Scores = Mapping[str, float]
"""Scores by metric."""
Systems = dict[str, Scores]
"""The scores of one seed by system, in the order of the table."""


def main() -> None:
    given = arguments()
    config = load_config(given.config, given.set)
    if not isinstance(config, MckdConfig):
        raise SystemExit(f"{given.config}: a config of kind mckd is needed")
    config = MckdRecipe().resolve(config)
    if given.independent_intent:
        config = in_store(config, f"{config.store.root}-independent-intent")
    asyncio.run(ingest_data(config, doing(config, given.parallel)))  # once, instead of by all seeds at the same time
    configs = [seeded(config, config.method.seed + number) for number in range(given.seeds)]
    # As in a run: threads that spin while they wait for each other stall a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ProcessPoolExecutor(given.parallel, get_context("spawn")) as pool:
        jobs = [pool.submit(run_seed, one, given.parallel, given.independent_intent) for one in configs]
        runs = [job.result() for job in jobs]
    print(f"{config.name}: percent on the test rows, mean and standard deviation over seeds", end="")
    print("; intent and tags decided independently" if given.independent_intent else "")
    for line in table(config.metrics, runs):
        print(line)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=1, help="seeds at once; they share the cores")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--independent-intent", action="store_true")
    return parser.parse_args()


def in_store(config: MckdConfig, root: str) -> MckdConfig:
    return config.model_copy(update={"store": config.store.model_copy(update={"root": root})})


def seeded(config: MckdConfig, seed: int) -> MckdConfig:
    baselines = [VANILLA, *(name for name in config.baselines if name != VANILLA)]
    method = config.method.model_copy(update={"seed": seed})
    return config.model_copy(update={"method": method, "baselines": baselines})


def run_seed(config: MckdConfig, parallel: int, independent_intent: bool) -> Systems:
    if independent_intent:
        Slots.decide = decide_each_unit  # type: ignore[assignment, method-assign]
    started = time.monotonic()
    systems = asyncio.run(run(config, doing(config, parallel)))
    metric = config.metrics[0]
    final, vanilla = (f"{name} {100 * systems[name][metric]:.2f}" for name in (FINAL, VANILLA))
    seconds = time.monotonic() - started
    print(
        f"seed {config.method.seed}: {final}, {vanilla} {TITLES[metric]}, {seconds:.0f} s", file=sys.stderr, flush=True
    )
    return systems


async def run(config: MckdConfig, do: Do) -> Systems:
    return systems_of(await MckdRecipe().distill(config, do, None))


def doing(config: MckdConfig, parallel: int) -> Do:
    """Each step in this process, one after the other; found in the store, or made."""

    async def do(step: Step) -> ArtifactRef:
        # Side by side are the seeds, not a seed's students: `parallel` of them share the cores.
        return made_or_found(config, step.model_copy(update={"siblings": parallel}))

    return do


def decide_each_unit(problem: Slots, text: str, probabilities: Floats) -> tuple[Label, float]:
    """`Slots.decide` without joint constraints on intent and tags: every unit's most probable class."""
    legal = probabilities * problem.allowed(len(probabilities))
    intent, *tags = (problem.classes[index] for index in legal.argmax(axis=1).tolist())
    shares = legal.max(axis=1) / legal.sum(axis=1)
    return encode(intent.removeprefix("IN:"), tags), float(np.exp(np.log(shares).mean()))


def systems_of(distilled: MckdResult) -> Systems:
    """A stage's students count with the mean of their scores."""
    systems: Systems = {}
    if distilled.teacher_scores is not None:
        systems["teacher"] = distilled.teacher_scores.metrics
    systems |= {name: scores.metrics for name, scores in distilled.baselines.items()}
    for done in distilled.rounds:
        name = f"stage {done.stage} ({len(done.students)} students)"
        systems[name] = mean_of([scores.metrics for scores in done.test_scores])
    systems[FINAL] = distilled.final_scores.metrics
    for stage, quality in enumerate(distilled.label_scores):
        if quality.metrics:
            systems[f"labels of stage {stage}, pool's gold"] = quality.metrics
    return systems


def mean_of(scores: list[Scores]) -> Scores:
    return {metric: statistics.mean(one[metric] for one in scores) for metric in scores[0]}


def table(metrics: Iterable[str], runs: list[Systems]) -> Iterable[str]:
    """One line per system, and one for the final student's gain. Since a rejected stage ends a seed's run, some systems
    may have fewer seeds than others."""
    metrics, names = tuple(metrics), list(dict.fromkeys(name for run in runs for name in run))
    yield line("", (TITLES[metric] for metric in metrics), "seeds")
    for name in names:
        having = [run[name] for run in runs if name in run]
        cells = (spread([scores[metric] for scores in having]) for metric in metrics)
        yield line(name, cells, str(len(having)))
    gains = ([run[FINAL][metric] - run[VANILLA][metric] for run in runs] for metric in metrics)
    cells = (spread(gain, divisor=len(runs) ** 0.5, signed="+") for gain in gains)
    yield line(f"{FINAL} - {VANILLA} (± s.e.)", cells, str(len(runs)))


def spread(values: list[float], divisor: float = 1.0, signed: str = "") -> str:
    """`50.5 ± 1.2`: mean and standard deviation (divided by `divisor`), in percent."""
    deviation = f"{100 * statistics.stdev(values) / divisor:.2f}" if len(values) > 1 else "-"
    return f"{100 * statistics.mean(values):{signed}.2f} ± {deviation}"


def line(name: str, cells: Iterable[str], seeds: str) -> str:
    return f"{name:38}{''.join(f'{cell:>18}' for cell in cells)}{seeds:>8}"


if __name__ == "__main__":
    main()
