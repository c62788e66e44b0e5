"""Benchmark: partition, merge and score a pool of 1,000,000 rows.

    .venv/bin/python benchmarks/pool.py [--rows 1000000]

`partition` reads the pool and finds each row's cell, as every student's step does. `merge` is the step that merges the
cross-labels of two students, each for the half that the other was trained on, into labels for the pool. `score` is the
step that scores these labels against the pool's gold labels: slot F1, intent accuracy and exact match with 2,000
bootstrap resamples each. Each job runs in its own process and prints wall-clock seconds and peak memory, including the
interpreter and its libraries. The rows are synthetic: 6 to 14 words, 7 intents with 6 slots each, labels that are equal
only by chance, and a fifth of each student's labels wrong. They are generated beforehand, untimed, in a temporary
folder, so the files are still in the page cache.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.artifacts.examples import GOLD_ROWS, ROWS, Examples
from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import MckdConfig
from retort.data.partitions import cell_of, in_cells
from retort.io.parquet import EXAMPLES, GOLD, PSEUDOLABELS, Row, write_rows
from retort.problems.slots import encode
from retort.recipes.execute import make
from retort.recipes.mckd.steps import evaluate_labels, merge_labels, unseen_cells
from retort.records.base import ArtifactRef, digest
from retort.steps.base import Step
from retort.steps.merge_labels import MergeLabels
from retort.store import StepOutput
from retort.store.opening import open_store

SLOTS = {f"INTENT_{i}": [f"SLOT_{i}_{j}" for j in range(6)] for i in range(7)}
WORDS = [f"{number:x}" for number in range(0x1000, 0xFFFF, 97)]

arguments = argparse.ArgumentParser()
arguments.add_argument("--rows", type=int, default=1_000_000)
arguments.add_argument("--job", help="what a process of the benchmark itself is to do")
arguments.add_argument("--folder", type=Path)
given = arguments.parse_args()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as folder:
        run("build", folder)
        total = 0.0
        for job in ("partition", "merge", "score"):
            seconds, peak = run(job, folder)
            total += seconds
            print(f"{job:9} {given.rows:9,} rows {seconds:6.1f} s {peak:6.0f} MiB")
        print(f"together {total:27.1f} s")


def run(job: str, folder: str) -> tuple[float, float]:
    """Run a job in a process of its own and return its seconds and peak MiB."""
    command = [sys.executable, __file__, "--rows", str(given.rows), "--job", job, "--folder", folder]
    seconds, peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), float(peak)


def perform(job: Callable[[], None]) -> None:
    started = time.perf_counter()
    job()
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def config() -> MckdConfig:
    return MckdConfig.model_validate(
        {
            "name": "pool",
            "problem": {"kind": "slots", "intents": SLOTS},
            "data": {"labeled": "none", "unlabeled": "none", "test": "none"},
            "teacher": {"kind": "recorded", "completions": "none"},
            "student": {"kind": "token-classification", "model": "none"},
            "store": {"root": str(given.folder / "store")},
        }
    )


@dataclass(frozen=True)
class Generated:
    """An artifact that the benchmark generates, in place of a step that would take hours."""

    name: str
    artifact_kind: str
    inputs: Mapping[str, tuple[ArtifactRef, ...]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"generated": self.name}

    @property
    def key(self) -> str:
        return digest(self.fingerprint)


POOL = Generated("pool", Examples.kind)
TEACHER = Generated("teacher", Pseudolabels.kind)
STUDENTS = (Generated("student-0", Pseudolabels.kind), Generated("student-1", Pseudolabels.kind))


def build() -> None:
    """Generate the input files. All use the same seed, so they agree about the rows."""
    publish(POOL, {ROWS: (EXAMPLES, texts()), GOLD_ROWS: (GOLD, labeled(wrong=0))})
    publish(TEACHER, {ROWS: (PSEUDOLABELS, labeled(wrong=0.3, labeler="teacher"))})
    for student, artifact in enumerate(STUDENTS):
        theirs = in_cells(labeled(wrong=0.2, labeler=artifact.name), unseen_cells(config(), student))
        publish(artifact, {ROWS: (PSEUDOLABELS, theirs)})


def publish(artifact: Generated, files: dict[str, tuple[object, Iterator[Row]]]) -> None:
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for name, (schema, rows) in files.items():
            count = write_rows(Path(folder) / name, schema, rows)  # type: ignore[arg-type]
        open_store(config().store).publish(artifact, Path(folder), StepOutput(rows=count), 0.0, "pool")


def texts() -> Iterator[Row]:
    return ({name: row[name] for name in ("example_id", "text")} for row in labeled(wrong=0))


def labeled(wrong: float, labeler: str = "gold") -> Iterator[Row]:
    """The pool's rows with labels, of which the share `wrong` is wrong."""
    rows, errors = random.Random(0), random.Random(labeler)
    for number in range(given.rows):
        intent = rows.choice(list(SLOTS))
        names = rows.choices(["", *SLOTS[intent]], k=rows.randint(6, 14))
        text = " ".join(rows.choices(WORDS, k=len(names)))
        if errors.random() < wrong:
            names[errors.randrange(len(names))] = errors.choice(SLOTS[intent])
        label = encode(intent, [f"I-{name}" if name else "O" for name in names])
        fields = {"confidence": 1.0, "labeler": labeler} if labeler != "gold" else {}
        yield {"example_id": f"row-{number:08}", "text": text, "label": label, **fields}


def ref(artifact: Generated | Step) -> ArtifactRef:
    store = open_store(config().store)
    manifest = store.find(artifact.artifact_kind, artifact.key)
    assert manifest is not None, f"{artifact.name} was not made"
    return store.ref(manifest)


def partition() -> None:
    method = config().method
    pool = Examples.open(open_store(config().store), ref(POOL))
    sizes = [0] * method.partitions
    for row in pool.rows(["example_id", "text"]):
        sizes[cell_of(row["example_id"], method.partitions, method.seed)] += 1
    assert sum(sizes) == given.rows


def merged() -> MergeLabels:
    first, second = STUDENTS
    return merge_labels(config(), "merged", ref(TEACHER), (ref(first), ref(second)))


def merge() -> None:
    assert make(config(), merged(), 0, lambda *_: None).rows == given.rows


def score() -> None:
    scores = make(config(), evaluate_labels(config(), "scores", ref(merged()), ref(POOL)), 0, lambda *_: None)
    assert scores.rows == given.rows
    assert 0.7 < scores.metrics["exact_match"] < 0.9, scores.metrics


JOBS = {"build": build, "partition": partition, "merge": merge, "score": score}

if __name__ == "__main__":
    perform(JOBS[given.job]) if given.job else main()
