"""Benchmark: the soft-label recipe with a pool of 1,000,000 answers and as many test rows, with the peak memory of each
step.

    .venv/bin/python benchmarks/scale_soft_label.py [--rows 1000000] [--test-rows ROWS] [--folder FOLDER]

The teacher's probabilities are recorded, of the pool in another order than the pool's. The arms are `with-pool`, one
tiny student that is trained for one epoch on 2,000 rows and the pool, and `tfidf`. `check` is what a run does before
anything else, ingest with it. Every step runs in a child process of its own, as in a run, but without Prefect. Printed
are, per step, rows, wall-clock seconds, those of all cores with the start of the process, and the process's peak memory
(`VmHWM`: with interpreter and libraries).

The rows are synthetic and generated beforehand, untimed: a reference of 4 words and an answer of 6, of which some are
the reference's, in 3 classes.
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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retort.config.soft_label import SoftLabelConfig
from retort.recipes.execute import made_or_found
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.pipeline import distill
from retort.records.base import ArtifactRef
from retort.steps.base import Step

CLASSES = ("wrong", "half", "right")
WORDS = np.array([f"word{number:04}" for number in range(2000)])
CHUNK_ROWS = 250_000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="retort-scale-", dir=given.folder) as name:
        command = [sys.executable, __file__, "--rows", str(given.rows), "--test-rows", str(given.test_rows)]
        subprocess.run([*command, "--build", name], check=True)
        asyncio.run(run(config(Path(name))))


async def run(config: SoftLabelConfig) -> None:
    async def do(step: Step | None) -> ArtifactRef:
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            ref, seconds, cpu_seconds, peak = child.submit(measured, config, step).result()
        name, rows = (step.name, ref.rows) if step and ref else ("check", given.rows)
        print(f"{name:24}{rows:12,}{seconds:8.1f} s{cpu_seconds:8.1f} s{peak:7.0f} MiB", flush=True)
        return ref  # type: ignore[return-value]

    await do(None)
    await distill(config, do)


def measured(config: SoftLabelConfig, step: Step | None) -> tuple[ArtifactRef | None, float, float, float]:
    """(what was made, wall-clock seconds, those of all cores, peak MiB); without a step, of the checks before a run."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run
    started = time.perf_counter()
    ref = made_or_found(config, step) if step else None
    if step is None:
        check(config)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time()
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return ref, seconds, cpu_seconds, peak / 1024


def config(folder: Path) -> SoftLabelConfig:
    return SoftLabelConfig.model_validate(
        {
            "kind": "soft-label",
            "name": "scale",
            "problem": {"kind": "classification", "labels": list(CLASSES)},
            "data": {
                **{role: str(folder / f"{role}.parquet") for role in ("train", "dev")},
                "unlabeled": str(folder / "pool.parquet"),
                "tests": {"test": str(folder / "test.parquet")},
                "columns": {"text": ["answer", "reference"], "group": "question"},
            },
            "teacher": {"kind": "probabilities", "probabilities": str(folder / "probabilities.jsonl.zst")},
            "student": {"kind": "tiny", "training": {"epochs": 1}},
            "grid": {"lambda": [1], "distillation_temperature": [1], "seeds": 1},
            "arms": ["with-pool", "tfidf"],
            "store": {"root": str(folder / "store")},
            "tracking": None,
            "execution": {"device": "cpu"},
        }
    )


def build(folder: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = {"dev": 500, "test": given.test_rows, "train": 2000, "pool": given.rows}
    with pa.CompressedOutputStream(str(folder / "probabilities.jsonl.zst"), "zstd") as out:
        for role, size in sizes.items():
            with pq.ParquetWriter(folder / f"{role}.parquet", table(role, range(1), generator)[0].schema) as writer:
                for start in range(0, size, CHUNK_ROWS):
                    numbers = range(start, min(start + CHUNK_ROWS, size))
                    rows, gold = table(role, numbers, generator)
                    writer.write_table(rows)
                    if role in ("train", "pool"):
                        out.write(opinions(role, numbers, gold, generator))


def table(role: str, numbers: range, generator: np.random.Generator) -> tuple[pa.Table, list[int]]:
    """Return (the rows, their classes). A right answer has 4 of the reference's words, a half right one 2."""
    gold = generator.integers(len(CLASSES), size=len(numbers))
    reference = generator.integers(len(WORDS), size=(len(numbers), 4))
    answer = generator.integers(len(WORDS), size=(len(numbers), 6))
    for place in range(4):
        said = gold * 2 > place
        answer[said, place + 1] = reference[said, place]
    columns = {
        "id": [f"{role}-{number:08}" for number in numbers],
        "answer": [" ".join(row) for row in WORDS[answer].tolist()],
        "reference": [" ".join(row) for row in WORDS[reference].tolist()],
        "question": [f"question {number % 100}" for number in numbers],
        "label": np.array(CLASSES)[gold],
    }
    return pa.table(columns), gold.tolist()


def opinions(role: str, numbers: range, gold: list[int], generator: np.random.Generator) -> bytes:
    lines = []
    for at in generator.permutation(len(numbers)).tolist():
        values = {name: 0.8 if number == gold[at] else 0.1 for number, name in enumerate(CLASSES)}
        lines.append(json.dumps({"id": f"{role}-{numbers[at]:08}", "probabilities": values}))
    return "".join(f"{line}\n" for line in lines).encode()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000, help="of the pool")
    arguments.add_argument("--test-rows", type=int, help="as many as the pool's, where nothing is given")
    arguments.add_argument("--folder", type=Path, help="where files are kept while it runs, instead of in TMPDIR")
    arguments.add_argument("--build", type=Path, help="only make the sources there; for the benchmark itself")
    given = arguments.parse_args()
    given.test_rows = given.rows if given.test_rows is None else given.test_rows
    if given.build:
        build(given.build)
    else:
        main()
