"""Evidence for MCKD's defaults: arms of a config over pools of several sizes and several seeds.

    .venv/bin/python benchmarks/reproduce/mckd.py TABLE ... [--seeds 5] [--parallel 2] [--pools 150 1500] [--out FILE]

The tables are in tables.yaml beside this file. Each pool and seed is a job in a process of its own, without Prefect;
its arms run one after the other over one temporary store, so that what they have in common is made once. The scores of
a finished job are appended to FILE, and a later call goes on where this one ended. Then the tables are printed in
Markdown: percent on the test rows, mean over seeds with half of its 95 % interval (Student's t), and the gain over
vanilla distillation, paired by seed.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retort.config import MckdConfig, RunSettings
from retort.metrics.format import TITLES
from retort.metrics.seeds import SeedScore, over_seeds, paired
from retort.recipes import load_config
from retort.recipes.base import Do
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.recipe import MckdRecipe
from retort.records.base import ArtifactRef
from retort.records.mckd import MckdResult
from retort.steps.base import Step

HERE = Path(__file__).parent
VANILLA, TEACHER = "vanilla-kd", "teacher, on the pool"
Scores = dict[str, float]
"""By metric, from 0 to 1."""


class Job(NamedTuple):
    """All arms of a table with one pool and one seed."""

    table: str
    pool: int
    seed: int


def main() -> None:
    given = arguments()
    tables: dict[str, Any] = yaml.safe_load((HERE / "tables.yaml").read_text(encoding="utf-8"))
    if unknown := [name for name in given.tables if name not in tables]:
        raise SystemExit(f"no table is called '{unknown[0]}'; there are {', '.join(tables)}")
    pools = {name: given.pools or tables[name]["pools"] for name in given.tables}
    jobs = [Job(name, pool, seed) for seed in range(given.seeds) for name in given.tables for pool in pools[name]]
    # Seed by seed, so that what is there after an interruption is balanced; large pools first, as they take longest.
    jobs.sort(key=lambda job: (job.seed, -job.pool))
    done = {Job(*line["job"]): line["systems"] for line in read(given.out)}
    make_missing(
        [job for job in jobs if not tables[job.table]["arms"].keys() <= done.get(job, {}).keys()], tables, given
    )
    done = {Job(*line["job"]): line["systems"] for line in read(given.out)}
    for name in given.tables:
        metrics = config_of(tables[name], Job(name, pools[name][0], 0), []).metrics[:2]
        for pool in pools[name]:
            runs = [done[job] for job in jobs if job in done and (job.table, job.pool) == (name, pool)]
            print(f"\n**{name}**, pool of {pool:,}, {len(runs)} seeds\n")
            print("\n".join(markdown(runs, metrics)) if runs else "no job is done")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=1, help="jobs at once; they share the cores and the GPU")
    parser.add_argument("--pools", type=int, nargs="+", help="instead of the table's")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all arms")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no arm after so many")
    parser.add_argument("--store", type=Path, help="one for all jobs, which is kept, instead of one for each")
    parser.add_argument("--out", type=Path, default=Path("evidence.jsonl"))
    return parser.parse_args()


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_missing(jobs: list[Job], tables: Mapping[str, Any], given: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run: spinning threads stall a shared machine
    started = time.monotonic()
    with ProcessPoolExecutor(given.parallel, get_context("spawn")) as executor, given.out.open("a") as out:
        ends = time.time() + given.seconds
        futures = {
            executor.submit(run_job, tables[job.table], job, given.set, given.parallel, ends, given.store): job
            for job in jobs
        }
        for future in as_completed(futures):
            if (systems := future.result()) is None:
                continue
            out.write(json.dumps({"job": futures[future], "systems": systems}) + "\n")
            out.flush()
            print(f"{time.monotonic() - started:6.0f} s: {futures[future]}", flush=True)


def run_job(
    table: Mapping[str, Any], job: Job, overrides: list[str], parallel: int, ends: float, kept_in: Path | None
) -> dict[str, Scores] | None:
    """The scores of the table's rows, of those arms that were begun in time; None if it was too late to begin."""
    if time.time() > ends:
        return None
    systems: dict[str, Scores] = {}
    own = tempfile.TemporaryDirectory(prefix="retort-evidence-") if kept_in is None else nullcontext(kept_in)
    with own as store:
        for arm, changes in table["arms"].items():
            if systems and time.time() > ends:
                break
            config = config_of(table, job, [*changes, *overrides, f"store.root={store}", "tracking=null"])
            config = MckdRecipe().resolve(config)
            if systems:
                config = config.model_copy(update={"baselines": []})
            result = asyncio.run(MckdRecipe().distill(config, doing(config, parallel), None))
            systems |= rows_of(arm, result) if systems else {**baselines_of(result), **rows_of(arm, result)}
    return systems


def config_of(table: Mapping[str, Any], job: Job, changes: Iterable[str]) -> MckdConfig:
    own = [*table.get("set", []), f"data.limit={job.pool}", f"method.seed={job.seed}", *changes]
    config = load_config(table["config"], own)
    assert isinstance(config, MckdConfig), "the tables are about this recipe"
    return config


def doing(config: RunSettings, parallel: int) -> Do:
    async def do(step: Step) -> ArtifactRef:
        return made_or_found(config, step.model_copy(update={"siblings": parallel}))

    return do


def baselines_of(result: MckdResult) -> dict[str, Scores]:
    teacher = result.teacher_scores.metrics if result.teacher_scores else result.label_scores[0].metrics
    name = "teacher" if result.teacher_scores else TEACHER
    return {name: dict(teacher), **{name: dict(ref.metrics) for name, ref in result.baselines.items()}}


def rows_of(arm: str, result: MckdResult) -> dict[str, Scores]:
    """The arm's final student; the metrics `kept` and `fine-tuned` say what it was made of."""
    tuning = result.fine_tuning
    made_of = {"kept": float(result.kept_stage), "fine-tuned": float(bool(tuning and tuning.accepted))}
    return {arm: {**result.final_scores.metrics, **made_of}}


def markdown(runs: list[dict[str, Scores]], metrics: Iterable[str]) -> Iterator[str]:
    metrics = tuple(metrics)
    columns = [*(TITLES[metric] for metric in metrics), f"gain over {VANILLA}", "stage kept", "fine-tuned"]
    yield "| | " + " | ".join(columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for name in dict.fromkeys(name for run in runs for name in run):
        having = [run for run in runs if name in run]
        cells = [spread(over_seeds([run[name][metric] for run in having])) for metric in metrics]
        if name in (VANILLA, TEACHER):
            cells.append("")
        else:
            own, vanilla = ([run[row][metrics[0]] for run in having] for row in (name, VANILLA))
            cells.append(spread(paired(vanilla, own), "+"))
        for fact in ("kept", "fine-tuned"):
            known = [run[name][fact] for run in having if fact in run[name]]
            cells.append(f"{sum(known) / len(known):.1f}" if known else "")
        yield f"| {name} | {' | '.join(cells)} |"


def spread(score: SeedScore, sign: str = "") -> str:
    return f"{100 * score.mean:{sign}.1f} ± {100 * (score.high - score.mean):.1f}"


if __name__ == "__main__":
    main()
