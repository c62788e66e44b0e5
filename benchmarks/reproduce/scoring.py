"""Evidence for soft-label distillation into tiny students: arms on every test set, over several seeds.

    .venv/bin/python -m benchmarks.reproduce.scoring TABLE ... [--seeds 5] [--store FOLDER] [--out FILE]

The tables are in scoring.yaml beside this file. Each row of a table is a job, made without Prefect in a store that is
kept, so that rows share their teachers. The scores of a finished job are appended to FILE, and a later call goes on
where this one ended. Then a table in Markdown is printed for dev and for each test set: percent, mean over seeds with
half of its 95 % interval (Student's t), and differences from gold labels alone and from label smoothing, paired by
seed. Dev rows chose each student's epoch and each row's lambda and T, so their scores flatter.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reproduce.ensemble import write_ensemble, write_halves
from benchmarks.reproduce.mckd import doing, read, spread
from retort.artifacts.grids import Grid
from retort.artifacts.scores import SeedScores
from retort.config.soft_label import SoftLabelConfig
from retort.metrics.format import TITLES
from retort.metrics.seeds import over_seeds, paired
from retort.recipes import load_config
from retort.recipes.base import Do
from retort.recipes.soft_label import pipeline
from retort.recipes.soft_label.recipe import SoftLabelRecipe
from retort.store.opening import open_store

HERE = Path(__file__).parent
TEACHER = "teacher"
"""The row of the teacher, which has no arm."""
METRICS = ("accuracy", "macro_f1")
BASELINES = ("hard", "label-smoothing")
"""Arms that need no teacher, and rows that the others are compared with."""
Scores = dict[str, dict[str, list[float]]]
"""By rows (dev or a test set) and metric: from 0 to 1, one value for each seed."""
Job = tuple[str, str]
"""A table and one of its rows."""


def main() -> None:
    given = arguments()
    tables: dict[str, Any] = yaml.safe_load((HERE / "scoring.yaml").read_text(encoding="utf-8"))
    if unknown := [name for name in given.tables if name not in tables]:
        raise SystemExit(f"no table is called '{unknown[0]}'; there are {', '.join(tables)}")
    jobs: list[Job] = [(name, row) for name in given.tables for row in tables[name]["arms"]]
    make_missing([job for job in jobs if job not in scores_in(given.out)], tables, given)
    done = scores_in(given.out)
    for name in given.tables:
        scores = {row: done[table, row] for table, row in jobs if table == name and (table, row) in done}
        print("\n".join(markdown(name, scores)) if scores else f"{name}: no job is done")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all rows")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no job after so many")
    parser.add_argument("--store", type=Path, default=Path(".retort/evidence"), help="keeps teachers and students")
    parser.add_argument("--out", type=Path, default=Path("scoring.jsonl"))
    return parser.parse_args()


def scores_in(path: Path) -> dict[Job, Scores]:
    return {(line["job"][0], line["job"][1]): line["scores"] for line in read(path)}


def make_missing(jobs: list[Job], tables: Mapping[str, Any], given: argparse.Namespace) -> None:
    started = time.monotonic()
    for table, row in jobs:
        if time.monotonic() - started > given.seconds:
            return
        shared = [
            *given.set,
            f"grid.seeds={given.seeds}",
            f"store.root={given.store}",
            "tracking=null",
            "resamples=100",
        ]
        changes = [*tables[table]["arms"][row], *shared]
        config = config_of(tables[table], [*changes, *own_data(table, tables[table], shared)])
        scores, chosen = asyncio.run(run(config, row == TEACHER, doing(config, 1)))
        with given.out.open("a") as out:
            out.write(json.dumps({"job": [table, row], "scores": scores, "chosen": chosen}) + "\n")
        print(f"{time.monotonic() - started:6.0f} s: {table}, {row} {chosen or ''}", flush=True)


def own_data(name: str, table: Mapping[str, Any], shared: list[str]) -> list[str]:
    """Makes what a table has instead of the config's rows and teacher, and returns the changes to the config."""
    if "ensemble" not in table:
        return []
    config = config_of(table, shared)
    folder = Path(config.store.root) / f"own-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    changes = write_halves(config, table["pool"], folder)
    teacher = folder / "probabilities.jsonl"
    if teacher.exists():
        return [*changes, f"teacher={{kind: probabilities, probabilities: {teacher}}}"]
    config = config_of(table, [*shared, *changes])
    return [*changes, *write_ensemble(config, doing(config, 1), teacher, **table["ensemble"])]


def config_of(table: Mapping[str, Any], changes: list[str]) -> SoftLabelConfig:
    config = load_config(table["config"], [*table.get("set", []), *changes])
    assert isinstance(config, SoftLabelConfig), "the tables are about this recipe"
    return SoftLabelRecipe().resolve(config)


async def run(config: SoftLabelConfig, is_teacher: bool, do: Do) -> tuple[Scores, dict[str, Any] | None]:
    """The scores of the config's first arm, or of its teacher, and the setting that the dev rows chose."""
    arm = config.arms[0]
    data = await pipeline.ingest_rows(config, do)
    teacher = pipeline.TeacherProbabilities(probabilities={})
    if is_teacher or arm not in BASELINES:
        teacher = await pipeline.TEACHERS[config.teacher.kind](config, data, do)
    if is_teacher:
        return values_of(config, await pipeline.score_teacher(config, data, teacher, do)), None
    grids = await pipeline.train_grids(config, data, teacher, do)
    trained = pipeline.TrainedArms(grids=grids, small=())
    scores = values_of(config, await pipeline.score_arm(config, arm, data, trained, do))
    grid = Grid.open(open_store(config.store), grids[arm])
    return scores, grid.tried()[grid.best].setting


def values_of(config: SoftLabelConfig, scores: pipeline.Refs) -> Scores:
    opened = {name: SeedScores.open(open_store(config.store), ref).scores().metrics for name, ref in scores.items()}
    return {
        name: {metric: list(one.values) for metric, one in metrics.items()}
        for name, metrics in opened.items()
        if name == "dev" or name in config.data.tests
    }


def markdown(table: str, scores: Mapping[str, Scores]) -> Iterator[str]:
    against = [(name, metric) for name in BASELINES if name in scores for metric in METRICS]
    columns = [
        *(TITLES[metric] for metric in METRICS),
        "NLL",
        *(f"{TITLES[metric]} - {name}" for name, metric in against),
    ]
    for rows in next(iter(scores.values())):
        yield f"\n**{table}**, {rows}\n"
        yield "| | " + " | ".join(columns) + " |"
        yield "| --- |" + " --- |" * len(columns)
        for name, by_rows in scores.items():
            own = by_rows[rows]
            cells = [spread(over_seeds(own[metric])) for metric in METRICS]
            cells.append(f"{over_seeds(own['nll']).mean:.2f}")
            for other, metric in against:
                cells.append("" if other == name else spread(paired(scores[other][rows][metric], own[metric]), "+"))
            yield f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
