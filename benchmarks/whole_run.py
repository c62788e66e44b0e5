"""Benchmark: a whole run in a new store, and how busy the GPUs are once its teacher's engine has started.

    .venv/bin/python benchmarks/whole_run.py CONFIG [--set FIELD=VALUE ...] [--json FILE]

A machine with GPUs, 6,000 requests labeled by a language model of 1.5 billion parameters, 50 steps:

    .venv/bin/python benchmarks/whole_run.py examples/snips-qwen.yaml --set execution.parallel_students=4 \\
        --set "teacher={kind: vllm, model: .retort/models/qwen2.5-coder-1.5b, memory_share: 0.5, preparation: graphs,
        min_success_ratio: 0.5, sampling: {max_tokens: 96}}"

Prints the seconds of the command `retort run`, of the engine's start (`waited` is what the run waited for it), of the
labeling, and of everything after the engine had started; then the share of these in which each GPU computed, as
`nvidia-smi` samples it, the seconds in which no step ran, and the ten longest steps. Without a GPU, or without an
engine, the lines about them are left out.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from retort.store import Manifest

SAMPLE_MS = 200
SHOWN = 10


class Sample(NamedTuple):
    at: float
    """Seconds since the epoch."""
    gpu: str
    percent: float
    """Of the time since the sample before in which the GPU computed something."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path, help="where the same figures go, and the course of the run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as folder:
        own = [f"store.root={folder}/store", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        sets = [f"--set={field}" for field in [*given.set, *own]]
        with sampled() as samples:
            started = time.time()
            subprocess.run(
                [sys.executable, "-m", "retort.cli", "run", given.config, "--json", *sets],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            ended = time.time()
        steps = made(Path(folder) / "store")
    found = figures(steps, samples, started, ended)
    for name, value in found.items():
        print(f"{name:44} {value:7.1f}" if isinstance(value, float) else f"{name:44} {value}")
    if given.json:
        course = [
            {"step": step.name, "gpu": step.details.get("gpu"), "began": begun(step) - started, "seconds": step.seconds}
            for step in steps
        ]
        busy = [(round(sample.at - started, 1), sample.gpu, sample.percent) for sample in samples]
        given.json.write_text(json.dumps({**found, "course": course, "busy": busy}) + "\n")


@contextlib.contextmanager
def sampled() -> Iterator[list[Sample]]:
    """What each GPU does meanwhile; stays empty without one."""
    samples: list[Sample] = []
    if not (tool := shutil.which("nvidia-smi")):
        yield samples
        return
    query = ["--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={SAMPLE_MS}"]
    process = subprocess.Popen([tool, *query], stdout=subprocess.PIPE, text=True)

    def read() -> None:
        for line in process.stdout or ():
            gpu, _, percent = line.partition(",")
            with contextlib.suppress(ValueError):  # a GPU that does not tell
                samples.append(Sample(time.time(), gpu.strip(), float(percent)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        reader.join()


def made(store: Path) -> list[Manifest]:
    """What the run made, in the order in which it was begun."""
    paths = store.glob("*/*/*/manifest.json")
    return sorted((Manifest.model_validate_json(path.read_bytes()) for path in paths), key=begun)


def begun(step: Manifest) -> float:
    return datetime.fromisoformat(str(step.details["started_at"])).timestamp()


def figures(steps: list[Manifest], samples: list[Sample], started: float, ended: float) -> dict[str, float | int | str]:
    """Seconds and shares by what they are of."""
    found: dict[str, float | int | str] = {"steps": len(steps), "whole run, s": ended - started}
    since = started
    engines = (step for step in steps if "waited_seconds" in step.details.get("engine", {}))
    labeling = next(engines, None)
    if labeling:
        spent, engine = labeling.details["spent"], labeling.details["engine"]
        since = begun(labeling) + engine["waited_seconds"]
        found["until the labeling began, s"] = begun(labeling) - started
        found["engine's start, s"] = float(engine["start_seconds"])
        found["... of which the labeling waited, s"] = float(engine["waited_seconds"])
        found["labeling, s"] = float(spent["asking_seconds"])
        found["since the engine had started, s"] = ended - since
    for gpu in sorted({sample.gpu for sample in samples}):
        shares = [sample.percent for sample in samples if sample.gpu == gpu and since <= sample.at <= ended]
        found[f"GPU {gpu} busy since then, %"] = sum(shares) / max(1, len(shares))
    found["no step ran since then, s"] = idle(steps, since, ended)
    for step in sorted(steps, key=lambda step: -step.seconds)[:SHOWN]:
        found[f"{step.name}, s"] = step.seconds
    return found


def idle(steps: list[Manifest], since: float, ended: float) -> float:
    """Seconds in which no step ran."""
    total, covered = 0.0, since
    for step in steps:
        total += max(0.0, min(begun(step), ended) - covered)
        covered = max(covered, begun(step) + step.seconds)
    return total + max(0.0, ended - covered)


if __name__ == "__main__":
    main()
