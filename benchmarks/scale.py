"""Benchmark: a pool of 1,000,000 rows from the files to the final student, with the peak memory of each step.

    .venv/bin/python benchmarks/scale.py [--rows 1000000] [--student causal] [--parallel 1] [--folder FOLDER]
        [--skip KIND ...]

The MCKD recipe with a recorded teacher and a random encoder of 50,000 parameters, or a decoder (`--student causal`),
which writes one token for the class: 2 stages of 2 partitions, so the pool
is read, labeled, learned by halves, relabeled, merged, learned by the final student, and each stage's labels are scored
against the pool's gold labels. Every step runs in a child process of its own, as in a run, but without Prefect. Printed
are, per step, rows, wall-clock seconds, those of all cores with the start of the process, the process's peak memory
(`VmHWM`: with interpreter and libraries) and the bytes that it added to
the store.

The rows are synthetic and generated beforehand, untimed, with numpy: texts of 8 words in 50 classes, ids, and gold
labels, as zstd-compressed Parquet; the completions as zstd-compressed JSON lines in another order than the pool, of
which 8 % name a wrong class and 1 % none.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.random_encoder import write_decoder, write_encoder
from retort.config import MckdConfig
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.recipe import MckdRecipe
from retort.records.base import ArtifactRef
from retort.steps.base import Step

CLASSES = [f"topic{number:02}" for number in range(50)]
COMMON = [f"word{number:03}" for number in range(500)]
TELLING = [f"{name}{sign}" for name in CLASSES for sign in "abcd"]
"""Words that tell the class, four of each."""
FILE_ROWS = 250_000
JUDGED = {"labeled": 500, "test": 2000}


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float
    """Of all threads."""
    peak_mib: float
    stored_bytes: int


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="retort-scale-", dir=given.folder) as name:
        folder = Path(name)
        # In a process of its own, so that what it imports and holds is not in the children's figures.
        subprocess.run([sys.executable, __file__, "--rows", str(given.rows), "--build", name], check=True)
        print(f"{given.rows:,} rows; sources {size_of(folder) / 1e6:,.0f} MB", flush=True)
        started = time.perf_counter()
        asyncio.run(run(config(folder), folder / "store"))
        seconds = time.perf_counter() - started
        print(f"{'together':36}{seconds:8.1f} s{'':21}{size_of(folder / 'store') / 1e6:9,.1f} MB")


async def run(config: MckdConfig, store: Path) -> None:
    recipe, places = MckdRecipe(), asyncio.Semaphore(given.parallel)
    config = recipe.resolve(config)

    async def do(step: Step) -> ArtifactRef:
        if step.kind in given.skip:
            return ArtifactRef(uri="", kind=step.artifact_kind, key=step.key)
        async with places:
            with ProcessPoolExecutor(1, get_context("spawn")) as child:
                ref, cost = await asyncio.wrap_future(child.submit(measured, config, step, store))
        print(
            f"{step.name:24}{ref.rows:12,}{cost.seconds:8.1f} s{cost.cpu_seconds:8.1f} s{cost.peak_mib:7.0f} MiB"
            f"{cost.stored_bytes / 1e6:9,.1f} MB",
            flush=True,
        )
        return ref

    result = await recipe.run(config, do, None)
    if not given.skip:
        await do(recipe.report(config, result))


def measured(config: MckdConfig, step: Step, store: Path) -> tuple[ArtifactRef, Cost]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run
    started = time.perf_counter()
    ref = made_or_found(config, step)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time()
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return ref, Cost(seconds, cpu_seconds, peak / 1024, size_of(store / ref.uri.removeprefix(str(store)).lstrip("/")))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def config(folder: Path) -> MckdConfig:
    training = {"epochs": 1, "min_updates": 0, "batch_tokens": 4096, "learning_rate": 1e-2, "max_length": 32}
    student = {"kind": given.student, "model": str(folder / given.student), "training": training}
    if given.student == "causal":
        student["max_target_length"] = 1
    return MckdConfig.model_validate(
        {
            "name": "scale",
            "problem": {"kind": "classification", "labels": CLASSES},
            "data": {
                "labeled": str(folder / "labeled.parquet"),
                "unlabeled": str(folder / "pool"),
                "test": str(folder / "test.parquet"),
            },
            "teacher": {"kind": "recorded", "completions": str(folder / "completions.jsonl.zst")},
            "student": student,
            "method": {"stages": 2, "partitions": 2, "selection": {"kind": "always"}, "fine_tuning": {"kind": "never"}},
            "baselines": [],
            "evaluation": {"metrics": ["macro_f1", "accuracy"], "resamples": 500},
            "store": {"root": str(folder / "store")},
            "tracking": None,
            "execution": {"device": "cpu"},
        }
    )


def build(folder: Path) -> None:
    generator = np.random.default_rng(0)
    (folder / "pool").mkdir()
    for role, rows in JUDGED.items():
        pq.write_table(table(rows, role, generator)[0], folder / f"{role}.parquet")
    golds = []
    for first in range(0, given.rows, FILE_ROWS):
        rows = min(FILE_ROWS, given.rows - first)
        pool, gold = table(rows, f"row-{first // FILE_ROWS}", generator)
        pq.write_table(pool, folder / "pool" / f"{first // FILE_ROWS:05}.parquet", compression="zstd")
        golds.append(gold)
    with pa.CompressedOutputStream(str(folder / "completions.jsonl.zst"), "zstd") as out:
        for number, gold in reversed(list(enumerate(golds))):
            out.write(completions(f"row-{number}", gold, generator))
    write_encoder(folder / "sequence-classification", [*COMMON, *TELLING], layers=1)
    write_decoder(folder / "causal", [*COMMON, *TELLING], layers=1)


def table(rows: int, prefix: str, generator: np.random.Generator) -> tuple[pa.Table, Any]:
    """Return (id, text and label of so many rows, the labels' numbers)."""
    gold = generator.integers(len(CLASSES), size=rows)
    words = np.array(COMMON)[generator.integers(len(COMMON), size=(rows, 8))].astype("U8")
    for at in (2, 5):  # two of three rows have a word that tells the class, or two
        told = generator.random(rows) < 0.6
        words[told, at] = np.array(TELLING)[gold[told] * 4 + generator.integers(4, size=told.sum())]
    text = [" ".join(row) for row in words.tolist()]
    ids = [f"{prefix}-{number:07}" for number in range(rows)]
    return pa.table({"id": ids, "text": text, "label": np.array(CLASSES)[gold]}), gold


def completions(prefix: str, gold: Any, generator: np.random.Generator) -> bytes:
    luck = generator.random(len(gold))
    said = np.where(luck < 0.08, generator.integers(len(CLASSES), size=len(gold)), gold)
    lines = []
    for number in generator.permutation(len(gold)).tolist():
        text = "I cannot tell." if luck[number] > 0.99 else CLASSES[said[number]]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        response = {"status_code": 200, "body": {"choices": [choice]}}
        lines.append(json.dumps({"custom_id": f"{prefix}-{number:07}", "response": response, "error": None}))
    return "".join(f"{line}\n" for line in lines).encode()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument(
        "--student", choices=["sequence-classification", "causal"], default="sequence-classification"
    )
    arguments.add_argument("--parallel", type=int, default=1, help="steps at once; they share the cores")
    arguments.add_argument("--folder", type=Path, help="where files are kept while it runs, instead of in TMPDIR")
    arguments.add_argument("--skip", nargs="*", default=[], metavar="KIND", help="kinds of steps to leave out: hygiene")
    arguments.add_argument("--build", type=Path, help="only make the sources there; for the benchmark itself")
    given = arguments.parse_args()
    if given.build:
        build(given.build)
    else:
        main()
