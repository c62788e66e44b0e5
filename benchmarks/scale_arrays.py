"""Benchmark: what still grows with the rows of a pool, at 10,000,000 rows.

    .venv/bin/python benchmarks/scale_arrays.py [--rows 10000000] [PART ...]

Everything else of a run streams (`benchmarks/scale.py` runs all of it). `ids`: the ids that ingest and recorded
completions look up, in batches of 1,024. `training`: the rows of a training, of 12 tokens each, the batches of an epoch
counted and made again, and each row read in their order. `scoring`: accuracy and macro F1 of 50 classes with 500
bootstrap resamples. Each part runs in a process of its own and prints seconds of all cores and the peak memory
(`VmHWM`, with interpreter, libraries, and the pages of files that it has mapped).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def ids() -> None:
    from retort.data.ids import SeenIds

    seen = SeenIds()
    for start in range(0, given.rows, 1024):
        batch = [f"row-{number:010}" for number in range(start, min(start + 1024, given.rows))]
        assert not any(seen.first_places(batch))
        seen.add(batch, [f"pool.jsonl, line {start + at}" for at in range(len(batch))])
    assert seen.first_places(["row-0000000005"]) == ["pool.jsonl, line 5"]


def training() -> None:
    from retort.config import TrainingConfig
    from retort.students.encoder import EncodedRow
    from retort.students.training import Schedule, TrainingRows, UnitTrainingData

    lengths = np.random.default_rng(0).integers(6, 19, size=given.rows).astype(np.int8)

    def rows() -> Iterator[EncodedRow]:
        return (EncodedRow(np.ones(length, np.int32), np.zeros(1, np.int32)) for length in lengths)

    class Nothing:
        model: Any = None

    target = np.zeros(1, dtype=np.int64)
    data = TrainingRows(rows(), (target for _ in range(given.rows)))
    batches = Schedule(UnitTrainingData(Nothing(), data), TrainingConfig(epochs=1, batch_tokens=4096), 0)  # type: ignore[arg-type]
    for batch in batches.after(0):
        for place in batch.tolist():
            assert data.token_ids[place][0]


def scoring() -> None:
    from retort.metrics.scores import RowStatistics, score_of
    from retort.problems.classification import Classification

    problem = Classification([f"class {number}" for number in range(50)])
    statistics = RowStatistics(problem, ["accuracy", "macro_f1"])
    generator = np.random.default_rng(0)
    for start in range(0, given.rows, 1 << 16):
        size = min(1 << 16, given.rows - start)
        gold, other = generator.integers(50, size=(2, size))
        said = np.where(generator.random(size) < 0.8, gold, other)
        for one, two in zip(gold.tolist(), said.tolist(), strict=True):
            statistics.add(problem.classes[one], problem.classes[two])
    for metric in ("accuracy", "macro_f1"):
        assert 0.7 < score_of(problem, metric, statistics.of(metric), 500, 0).value < 0.9  # type: ignore[arg-type]


PARTS: dict[str, Callable[[], None]] = {"ids": ids, "training": training, "scoring": scoring}


def main() -> None:
    for part in given.parts or PARTS:
        command = [sys.executable, __file__, "--rows", str(given.rows), "--alone", part]
        seconds, peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        print(f"{part:10}{given.rows:12,} rows{float(seconds):8.1f} s{int(peak) / 1024:7.0f} MiB", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--alone", choices=PARTS, help="do this in this process; for the benchmark itself")
    given = arguments.parse_args()
    if given.alone:
        PARTS[given.alone]()
        status = Path("/proc/self/status").read_text().splitlines()
        print(time.process_time(), next(line.split()[1] for line in status if line.startswith("VmHWM")))
    else:
        main()
