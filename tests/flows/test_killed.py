"""What dies in the night: the whole run, one child, or the data."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from retort.errors import DataError
from tasks import child_process

Build = Callable[..., dict[str, Any]]
Manifests = Callable[[Path], dict[str, bytes]]

INGESTED = {"ingest/labeled", "ingest/unlabeled", "ingest/test"}
STUDENTS = {"stage1/student-0", "stage1/student-1"}
POINTS = [  # killed as soon as all of these are there and a child is at work on what follows
    INGESTED | {"stage0/pseudolabels"},
    INGESTED | {"stage0/pseudolabels", "stage1/pseudolabels"} | STUDENTS,
]


def workers(parent: int) -> list[psutil.Process]:
    """The children that the fork server below a process has started."""
    try:
        below = psutil.Process(parent).children(recursive=True)
        servers = {process.pid for process in below if "multiprocessing.forkserver" in " ".join(process.cmdline())}
        return [process for process in below if process.ppid() in servers]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_a_killed_run_repeats_no_finished_stage_and_ends_with_the_same_scores(
    tiny_slots: dict[str, Any],
    configured: Build,
    start_command: Callable[..., subprocess.Popen[str]],
    run_there: Callable[..., dict[str, Any]],
    run_here: Callable[[dict[str, Any]], Any],
    manifests: Manifests,
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    values = configured(tiny_slots, root, student__training__epochs=20)
    seen: dict[str, bytes] = {}
    for point in POINTS:
        kill_at(point, start_command(values, tmp_path), lambda: set(manifests(root)))
        left = manifests(root)
        assert seen.items() <= left.items(), "a finished stage was made again"
        seen = left
    assert "final/student" not in seen
    resumed = run_there(values, tmp_path)
    hits = {stage["name"] for stage in resumed["stages"] if stage["status"] == "HIT"}
    assert hits == set(seen)
    assert seen.items() <= manifests(root).items()

    undisturbed = run_here(configured(values, tmp_path / "undisturbed"))
    assert resumed["final"]["scores"] == undisturbed.summary.final_as_json()["scores"]
    assert contents(manifests(root)) == contents(manifests(tmp_path / "undisturbed"))


def kill_at(point: set[str], process: subprocess.Popen[str], made: Callable[[], set[str]]) -> None:
    """SIGKILL to the command, its fork server and its children at once."""
    end = time.monotonic() + 600
    while not (point <= made() and workers(process.pid)):
        if process.poll() is not None:
            pytest.fail(f"ended before it was killed: {process.communicate()}")
        assert time.monotonic() < end, f"never came to {point}"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def contents(manifests: dict[str, bytes]) -> dict[str, Any]:
    """Keys, and the digests of all files but those that tell times."""
    parsed = {name: json.loads(data) for name, data in manifests.items() if name != "report"}
    timed = ("history.json",)
    return {
        name: (manifest["key"], [file for file in manifest["files"] if file["path"] not in timed])
        for name, manifest in parsed.items()
    }


@pytest.fixture
def attempts(prefect_api: str) -> Callable[..., dict[str, tuple[str, int]]]:
    """State and number of attempts of each task run of the flow run of this name, once these tasks have ended."""

    def now(name: str) -> dict[str, tuple[str, int]]:
        body = {"flow_runs": {"name": {"any_": [name]}}}
        answer = httpx.post(f"{prefect_api}/task_runs/filter", json=body, timeout=60)
        answer.raise_for_status()
        return {run["name"]: (run["state_name"], run["run_count"]) for run in answer.json()}

    def ask(name: str, *tasks: str) -> dict[str, tuple[str, int]]:
        end = time.monotonic() + 120
        while True:  # task runs reach the server as events, some time after they happened
            found = now(name)
            if all(found.get(task, ("", 0))[0] in ("Completed", "Failed") for task in {*tasks, *found}):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.2)

    return ask


@pytest.mark.slow
def test_a_child_that_is_killed_once_is_retried_and_the_run_succeeds(
    tiny_slots: dict[str, Any],
    configured: Build,
    run_here: Callable[[dict[str, Any]], Any],
    attempts: Callable[..., dict[str, tuple[str, int]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    values = configured(
        tiny_slots, tmp_path / "store", name="killed-child", method__stages=1, student__training__epochs=100
    )
    killed: list[int] = []
    done_by = child_process._done_by

    async def killed_at_work(child: Any, call: Any, seconds: float, on_progress: Callable[..., None]) -> Any:
        def told(*progress: Any) -> None:
            on_progress(*progress)
            if call.args[1].name == "final/student" and not killed:
                killed.append(child._process.pid)
                os.kill(child._process.pid, signal.SIGKILL)

        return await done_by(child, call, seconds, told)

    monkeypatch.setattr(child_process, "_done_by", killed_at_work)
    finished = run_here(values)
    assert len(killed) == 1
    assert finished.summary.final.scores["slot_f1"].n == 20
    ended = attempts("killed-child", "final/student")
    assert {name for name, (_, count) in ended.items() if count != 1} == {"final/student"}
    assert ended["final/student"] == ("Completed", 2)


@pytest.mark.slow
def test_bad_data_is_not_retried(
    tiny_slots: dict[str, Any],
    configured: Build,
    run_here: Callable[[dict[str, Any]], Any],
    attempts: Callable[..., dict[str, tuple[str, int]]],
    tmp_path: Path,
) -> None:
    test = Path(shutil.copy(tiny_slots["data"]["test"], tmp_path / "test.jsonl"))
    first = test.read_text().splitlines()[0]
    with test.open("a") as file:
        file.write(f"{first}\n")
    values = configured(tiny_slots, tmp_path / "store", name="bad-data", data__test=str(test))
    with pytest.raises(DataError, match=json.loads(first)["id"]):
        run_here(values)
    ended = attempts("bad-data", "ingest/test", "ingest/unlabeled")
    assert (ended["ingest/test"], ended["ingest/unlabeled"]) == (("Failed", 1), ("Completed", 1))
