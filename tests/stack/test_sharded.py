"""A labeling and a cross-labeling in shards over three workers, of which one dies in the middle of its shard."""

import copy
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from endpoint_server import Body, EndpointServer
from retort.store import Store

ROOT = Path(__file__).parents[2]
POOL, SHARD = 17_500, 1000
"""Each of two students labels some 8,750 rows: a window of 8,192 and a rest."""
TEXTS, ASKED = 2900, 2900 + 12
"""Different texts of the pool, and with the labeled set, which the teacher is asked about as well."""
HELD = 1500
"""The row that the teacher does not answer until its shard's worker is dead."""
WORKERS = ("student-a", "student-b", "student-c")
SAFE_SECONDS = 6.0
"""After which a completion is in the ledger."""
STEPS = ("stage0/pseudolabels", "stage1/cross-labels-0", "stage1/cross-labels-1", "stage1/pseudolabels", "final/test")
CROSS_LABELS = [f"stage1/cross-labels-{student}/shard-{number}" for student in (0, 1) for number in (0, 1)]


def text_of(number: int) -> str:
    name = "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")
    return f"the film {name} was {('great', 'good', 'awful', 'dull')[number % 4]}"


def label_of(body: Body) -> str:
    item = body["messages"][-1]["content"]
    return "up" if "great" in item or "good" in item else "down"


def test_a_worker_dies_in_mid_shard_and_nothing_is_asked_twice(
    stack: Any, wait_until: Any, s3_rclone: tuple[str, str], tiny_classes: dict[str, Any], tmp_path: Path
) -> None:
    root = f"s3://{s3_rclone[1]}/sharded"
    store = Store(root, s3_rclone[0], cache=tmp_path / "cache")
    with EndpointServer() as server:
        server.reply = label_of
        server.fail(EndpointServer.hang, item=text_of(HELD))
        values = config_of(tiny_classes, server.url, tmp_path)
        on_pools = {"student_pool": "gpu-student", "teacher_pool": "gpu-student", "shard_rows": SHARD}
        sharded = {"store": {"root": root, "endpoint_url": s3_rclone[0]}, "execution": {"device": "cpu", **on_pools}}

        stack.ensure_worker("parents", "cpu")
        for name in WORKERS:
            stack.ensure_worker(name, "gpu-student")
        parent = stack.start_run("mckd/mckd", config=stack.write_config(values | sharded))
        wait_until("all but one row are answered", lambda: server.answered.total() == ASKED - 1)
        time.sleep(SAFE_SECONDS)
        shards = stack.children(parent)
        assert len(shards) == 3
        running = {name: run for name, run in shards.items() if run["state_type"] == "RUNNING"}
        wait_until("the other shards end", lambda: len(running_children(stack, parent)) == 1)
        ((victim, run),) = running_children(stack, parent).items()
        assert victim in running
        worker = next(name for name in WORKERS if runs_on(stack, run, name))
        stack.kill_worker(worker)
        server.heal()

        assert stack.end_of(run["id"])["state_type"] == "CRASHED"
        done = stack.end_of(parent)
        assert done["state_type"] == "COMPLETED", stack.told(done)
        assert set(server.answered.values()) == {1}
        assert server.answered.total() == ASKED
        assert {text for text, times in server.asked.items() if times > 1} == {f"Input: {text_of(HELD)}\nOutput:"}

        ended = [(run["name"], run["state_type"]) for run in all_children(stack, parent)]
        assert ended.count((victim, "COMPLETED")) == 1, "it was begun anew, without anybody's doing"
        assert [name for name, state in ended if state == "CRASHED"] == [victim]
        assert set(CROSS_LABELS) <= {name for name, state in ended if state == "COMPLETED"}
        assert "its worker died; begun anew" in stack.told(done)

        alone = {"store": {"root": str(tmp_path / "undisturbed")}, "execution": {"device": "cpu"}}
        config = stack.write_config(values | alone)
        subprocess.run(["retort", "run", config], cwd=ROOT, env=stack.environment, check=True, timeout=900)
    undisturbed = Store(str(tmp_path / "undisturbed"))
    assert {name: files(store, name) for name in STEPS} == {name: files(undisturbed, name) for name in STEPS}


def config_of(values: dict[str, Any], url: str, folder: Path) -> dict[str, Any]:
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps({"id": f"u{n}", "text": text_of(n % TEXTS)}) + "\n" for n in range(POOL)))
    changed = copy.deepcopy(values) | {"name": "sharded"}
    changed["data"]["unlabeled"] = str(pool)
    changed["student"]["training"] |= {"epochs": 0.2, "batch_tokens": 2048}
    changed["teacher"] = {"kind": "endpoint", "model": "scripted", "url": url, "concurrency": 32}
    return changed


def all_children(stack: Any, parent: str) -> list[dict[str, Any]]:
    """With those of the same name."""
    runs: list[dict[str, Any]] = stack.ask(
        "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [parent]}}}
    )
    return runs


def running_children(stack: Any, parent: str) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in all_children(stack, parent) if run["state_type"] not in ("COMPLETED", "FAILED")}


def runs_on(stack: Any, run: dict[str, Any], worker: str) -> bool:
    below = psutil.Process(stack.workers[worker].pid).children(recursive=True)
    return int(run["infrastructure_pid"].rpartition(":")[2]) in {process.pid for process in below}


def files(store: Store, step: str) -> dict[str, str]:
    manifest = store.latest("sharded", step)
    assert manifest is not None, step
    return {file.path: file.sha256 for file in manifest.files}
