"""What orchestration costs: a run that finds everything, and stages as runs of their own on work pools.

    make setup-server; make worker POOL=cpu &; make worker POOL=gpu-student WORKER_OPTIONS="--limit 1" & (twice)
    python benchmarks/orchestration.py CONFIG [--set FIELD=VALUE ...] [--repeat 3]

Needs PREFECT_API_URL. With the workers of the pool `gpu-student` running it also measures, in fresh stores below
`--folder`, the seconds that a child run takes beside its stage's own work, and how much slower two students train on
two workers than one alone (their training time, without starts).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from retort.store import Store

RETORT = str(Path(sys.executable).with_name("retort"))
STUDENTS = ("stage1/student-0", "stage1/student-1")


def run(config: str, sets: Sequence[str], *options: str) -> tuple[dict[str, Any], float]:
    """Return (the JSON that `retort run` prints, its seconds)."""
    command = [RETORT, "run", config, "--json", *options]
    for one in sets:
        command += ["--set", one]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - started


def cached(config: str, sets: Sequence[str], repeat: int) -> None:
    run(config, sets)
    seconds = [run(config, sets)[1] for _ in range(repeat)]
    print(f"everything in the store, inline: {min(seconds):.2f} s at best, median {statistics.median(seconds):.2f}")


def children_of(run_id: str) -> list[dict[str, Any]]:
    body = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
    runs: list[dict[str, Any]] = httpx.post(f"{os.environ['PREFECT_API_URL']}/flow_runs/filter", json=body).json()
    return runs


def on_pools(config: str, sets: Sequence[str], folder: Path) -> None:
    """Run two students on two workers, then one of them alone, each time in a fresh store."""
    both, alone = folder / "both", folder / "alone"
    pools = [*sets, "execution.student_pool=gpu-student"]
    finished, seconds = run(config, [*pools, f"store.root={both}"])
    name = name_of(both)
    store, overheads = Store(str(both)), []
    for child in children_of(finished["run_id"]):
        manifest = store.latest(name, child["name"])
        assert manifest is not None
        took = (moment(child["end_time"]) - taken_at(child["id"])).total_seconds()
        overheads.append(took - manifest.seconds)
    print(
        f"{len(overheads)} child runs on process workers, from when a worker takes it, beside the stage's own work: "
        f"median {statistics.median(overheads):.1f} s, at most {max(overheads):.1f} (the whole run {seconds:.0f} s)"
    )
    run(config, [*pools, f"store.root={alone}"], "--only", "ingest", "--only", "stage0", "--only", STUDENTS[0])
    pair = [training_seconds(both, name, student) for student in STUDENTS]
    single = training_seconds(alone, name, STUDENTS[0])
    spans = {c["name"]: (moment(c["start_time"]), moment(c["end_time"])) for c in children_of(finished["run_id"])}
    (start_0, end_0), (start_1, end_1) = (spans[student] for student in STUDENTS)
    overlap = (min(end_0, end_1) - max(start_0, start_1)).total_seconds()
    print(
        f"training: two students on two workers {pair[0]:.1f} and {pair[1]:.1f} s, the first alone {single:.1f} s: "
        f"{max(pair) / single:.2f} times; their runs overlap for {overlap:.1f} s"
    )


def taken_at(run_id: str) -> datetime:
    """When a worker took the run, which excludes the time that it waited for a free worker."""
    states = httpx.get(f"{os.environ['PREFECT_API_URL']}/flow_run_states/", params={"flow_run_id": run_id}).json()
    return min(moment(state["timestamp"]) for state in states if state["type"] == "PENDING")


def name_of(root: Path) -> str:
    (folder,) = (root / "latest").iterdir()
    return folder.name


def training_seconds(root: Path, name: str, step: str) -> float:
    manifest = Store(str(root)).latest(name, step)
    assert manifest is not None
    return float(manifest.details["training_seconds"])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for fresh stores; left out, pools are not measured")
    options = parser.parse_args()
    if "PREFECT_API_URL" not in os.environ:
        parser.error("set PREFECT_API_URL to a running server")
    cached(options.config, options.set, options.repeat)
    if options.folder:
        on_pools(options.config, options.set, options.folder)


if __name__ == "__main__":
    main()
