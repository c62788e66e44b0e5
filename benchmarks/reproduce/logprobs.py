"""Is a completion's log-probability a signal of its label's quality?

    .venv/bin/python benchmarks/reproduce/logprobs.py examples/craft.yaml FOLDER/craft.jsonl [--seeds 3] [--json FILE]

The completions are recorded ones with `logprob` and `tokens` beside each response, such as `teacher_gpu.py` writes with
`--model FOLDER --completions FOLDER`; the config's pool must have gold labels. First: the labels' score by tenths of
the mean log-probability of a token, and of the whole completion's, worst first. Then, on the test rows, vanilla
students that learned from all labels, from the better part of them by the mean log-probability, from as many that are
drawn by chance, and from all with the better half twice; mean over seeds with half of its 95 % interval.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.reproduce.mckd import doing, spread
from retort.config import MckdConfig
from retort.data import read_rows_of
from retort.metrics.seeds import over_seeds, paired
from retort.problems import Problem, problem_for
from retort.recipes import load_config
from retort.recipes.mckd.pipeline import ingest_data
from retort.recipes.mckd.recipe import MckdRecipe
from retort.recipes.mckd.steps import evaluate_student, train_student
from retort.recipes.mckd.teacher import teacher_labels
from retort.records.base import ParseFailure
from retort.teachers.salvage import parse_completion

TENTHS, KEPT = 10, (0.9, 0.75, 0.5)
COPY = "-again"


class Row(NamedTuple):
    """A row of the pool with its completion."""

    raw: dict[str, Any]
    """As the pool's file has it."""
    line: dict[str, Any]
    """The completion's line."""
    statistics: Any
    """Of the label's score, `(d,)`; a failure counts as wrong."""
    is_labeled: bool
    is_taught: bool
    """Whether students learn the label, see `method.min_confidence`."""
    mean: float
    """The mean log-probability of a token."""
    total: float


def main() -> None:
    given = arguments()
    config = load_config(given.config, [*given.set, "tracking=null", "data.limit=null", "method.stages=1"])
    assert isinstance(config, MckdConfig), "the students are those of this recipe"
    config = MckdRecipe().resolve(config)
    problem, metric = problem_for(config.problem), config.metrics[0]
    rows = read(config, problem, given.completions)
    print(f"{given.completions}: {len(rows)} completions of the pool, {metric}, percent")
    result: dict[str, Any] = {"tenths": {}}
    for name in ("mean", "total"):
        result["tenths"][name] = by_tenths(problem, metric, rows, name)
    if given.seeds:
        result["students"] = students(config, rows, given.seeds)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("completions", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind; 0: none")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def read(config: MckdConfig, problem: Problem, completions: Path) -> list[Row]:
    lines = {line["custom_id"]: line for line in map(json.loads, completions.read_text().splitlines())}
    columns, rows = config.data.columns, []
    for _, raw in read_rows_of(config.data.unlabeled):
        line, gold = lines.get(str(raw[columns.id])), problem.gold(raw, columns)
        if line is None or gold is None:
            continue
        choice = line["response"]["body"]["choices"][0]
        text = str(raw[columns.text])
        reading = parse_completion(problem, text, choice["message"]["content"], choice["finish_reason"])
        label = None if isinstance(reading.outcome, ParseFailure) else reading.outcome
        mean = line["logprob"] / max(line["tokens"], 1)
        statistics = problem.statistics(config.metrics[0], gold, label)
        is_taught = label is not None and reading.covered >= config.min_confidence
        rows.append(Row(dict(raw), line, statistics, label is not None, is_taught, mean, line["logprob"]))
    if not rows:
        raise SystemExit(f"{completions}: none of its completions is of a row of the pool with a gold label")
    return rows


def by_tenths(problem: Problem, metric: Any, rows: Sequence[Row], name: str) -> list[dict[str, float]]:
    """Prints and returns a line for each tenth."""
    ordered = sorted(rows, key=lambda row: getattr(row, name))
    print(f"\n{'by the ' + name:12} {'up to':>9} {'rows':>6} {'labeled':>8} {'score':>7} {'of labeled':>11}")
    found = []
    for number, places in enumerate(np.array_split(np.arange(len(ordered)), TENTHS), start=1):
        part = [ordered[place] for place in places]
        labeled = [row for row in part if row.is_labeled]
        line = {
            "up_to": getattr(part[-1], name) if part else float("nan"),
            "rows": len(part),
            "labeled": len(labeled) / max(len(part), 1),
            "score": score(problem, metric, part),
            "of_labeled": score(problem, metric, labeled),
        }
        found.append(line)
        print(
            f"{number:<12} {line['up_to']:9.3f} {line['rows']:6} {line['labeled']:8.1%} {line['score']:7.1f} "
            f"{line['of_labeled']:11.1f}"
        )
    return found


def score(problem: Problem, metric: Any, rows: Sequence[Row]) -> float:
    if not rows:
        return float("nan")
    return 100 * float(problem.value(metric, np.sum([row.statistics for row in rows], axis=0)))


def students(config: MckdConfig, rows: Sequence[Row], seeds: int) -> dict[str, list[float]]:
    """Prints a line for each kind of student; returns the scores by kind and seed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run: spinning threads stall a shared machine
    labeled = sorted((row for row in rows if row.is_taught), key=lambda row: -row.mean)
    arms: dict[str, Callable[[int], Sequence[Row]]] = {"all": lambda _: labeled}
    for kept in KEPT:
        most = round(kept * len(labeled))
        arms[f"best {kept:.0%}"] = partial(best, labeled, most)
        arms[f"any {kept:.0%}"] = partial(drawn, labeled, most)
    arms["best half twice"] = lambda _: [*labeled, *map(copied, labeled[: len(labeled) // 2])]
    found: dict[str, list[float]] = {name: [] for name in arms}
    print(f"\n{'students of':16} {'labels':>7} {config.metrics[0]:>14} {'against all':>14}")
    for name, choose in arms.items():
        found[name] = [vanilla(config, choose(seed), seed) for seed in range(seeds)]
        against = "" if name == "all" else spread(paired(found["all"], found[name]), "+")
        print(f"{name:16} {len(choose(0)):7} {spread(over_seeds(found[name])):>14} {against:>14}", flush=True)
    return found


def best(rows: Sequence[Row], most: int, seed: int) -> Sequence[Row]:
    return rows[:most]


def drawn(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))[:most]]


def copied(row: Row) -> Row:
    """The row once more: what is there twice counts twice."""
    name = row.line["custom_id"] + COPY
    return row._replace(raw={**row.raw, "id": name}, line={**row.line, "custom_id": name})


def vanilla(config: MckdConfig, rows: Sequence[Row], seed: int) -> float:
    """The test score of a student that learned from these rows' completions."""
    with tempfile.TemporaryDirectory(prefix="retort-logprobs-") as folder:
        pool, completions = Path(folder) / "pool.jsonl", Path(folder) / "completions.jsonl"
        pool.write_text("".join(json.dumps(row.raw) + "\n" for row in rows), encoding="utf-8")
        completions.write_text("".join(json.dumps(row.line) + "\n" for row in rows), encoding="utf-8")
        teacher = {"kind": "recorded", "completions": str(completions)}
        given = config.model_dump(mode="json", exclude_unset=True) | {"teacher": teacher}
        given["data"]["unlabeled"], given["method"]["seed"] = str(pool), seed
        given["store"] = {"root": f"{folder}/store"}
        return asyncio.run(learn(MckdRecipe().resolve(MckdConfig.model_validate(given))))


async def learn(config: MckdConfig) -> float:
    do = doing(config, 1)
    data = await ingest_data(config, do)
    labels = await teacher_labels(config, data, do)
    student = await do(train_student(config, "student", labels.labels))
    scores = await do(evaluate_student(config, "test", student, data.test))
    return float(scores.metrics[config.metrics[0]])


if __name__ == "__main__":
    main()
