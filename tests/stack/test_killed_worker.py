"""A machine dies in the night: what was finished stays, what died is retried by itself, and the next night begins."""

import copy
import json
from pathlib import Path
from typing import Any

import psutil

from retort.store import Store

STUDENTS = ("stage1/student-0", "stage1/student-1")


def test_a_killed_workers_stage_is_retried_alone_and_the_next_night_begins(
    stack: Any, webhook: Any, wait_until: Any, s3_rclone: tuple[str, str], tiny_slots: dict[str, Any], tmp_path: Path
) -> None:
    root = f"s3://{s3_rclone[1]}/stack"
    store = Store(root, s3_rclone[0], cache=tmp_path / "cache")
    values = longer(tiny_slots, "killed", epochs=400, store={"root": root, "endpoint_url": s3_rclone[0]})
    values |= {"tracking": {"uri": stack.mlflow}, "execution": {"device": "cpu", "student_pool": "gpu-student"}}
    endless = stack.write_config(longer(tiny_slots, "endless", epochs=1000, store={"root": str(tmp_path / "endless")}))

    for name, pool in (("parents", "cpu"), ("student-a", "gpu-student"), ("student-b", "gpu-student")):
        stack.ensure_worker(name, pool)
    parent = stack.start_run("mckd/mckd", config=stack.write_config(values))
    wait_until("the parent runs", lambda: stack.run(parent)["state_type"] == "RUNNING")
    stack.start_worker("nights", "cpu")  # which the other one, with its one run, leaves to this one
    night = stack.start_run("nightly/nightly", config=endless)
    wait_until("both students train", lambda: stack.at_work("student-a") and stack.at_work("student-b"))
    wait_until("the night trains", lambda: stack.at_work("nights"))

    children = stack.children(parent)
    victim = next(name for name in STUDENTS if runs_on(stack, children[name], "student-b"))
    stack.kill_worker("student-b")
    stack.kill_worker("nights")

    # While the dead night seems to run, no other begins.
    assert stack.end_of(stack.start_run("nightly/nightly", config=endless))["state_type"] == "CANCELLED"
    undisturbed = scores_of_an_undisturbed_run(stack, values, tmp_path)

    assert stack.end_of(children[victim]["id"])["state_type"] == "CRASHED"
    failed = stack.end_of(parent)
    assert failed["state_type"] == "FAILED", stack.told(failed)
    assert victim in failed["state"]["message"]
    assert "ended as Failed" in message(wait_until, webhook, "mckd 'killed'", parent)
    assert stack.end_of(night)["state_type"] == "CRASHED"
    finished = manifests(store)
    assert set(STUDENTS) - {victim} <= finished.keys()
    assert victim not in finished

    # The child alone, then its parent.
    stack.start_worker("student-b", "gpu-student")
    stack.retry(children[victim]["id"])
    retried = stack.end_of(children[victim]["id"])
    assert retried["state_type"] == "COMPLETED", stack.told(retried)
    stack.retry(parent)
    done = stack.end_of(parent)
    assert done["state_type"] == "COMPLETED", stack.told(done)

    final = store.latest("killed", "final/test")
    assert final is not None
    assert final.metrics == undisturbed
    assert finished.items() <= manifests(store).items(), "something that was finished was made again"
    counts = {name: run["run_count"] for name, run in stack.children(parent).items()}
    assert counts.pop(victim) == 2
    assert set(counts.values()) == {1}

    # The night that died keeps no other from beginning.
    small = longer(tiny_slots, "small", epochs=20, store={"root": str(tmp_path / "small")})
    small["tracking"] = {"uri": stack.mlflow}
    next_night = stack.end_of(stack.start_run("nightly/nightly", config=stack.write_config(small)))
    assert next_night["state_type"] == "COMPLETED", stack.told(next_night)
    assert "is the champion now" in message(wait_until, webhook, "small:", next_night["id"])


def message(wait_until: Any, webhook: Any, start: str, run_id: str) -> str:
    """What the webhook was told of something, with a link to a run's page."""

    def told() -> str | None:
        found = (one for one in webhook[1] if one["text"].startswith(start) and one["link"].endswith(run_id))
        return next((one["text"] for one in found), None)

    text: str = wait_until(f"the webhook is told of {start}", told)
    return text


def longer(values: dict[str, Any], name: str, epochs: int, store: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(values) | {"name": name, "store": store}
    changed["student"]["training"]["epochs"] = epochs
    return changed


def runs_on(stack: Any, run: dict[str, Any], worker: str) -> bool:
    below = psutil.Process(stack.workers[worker].pid).children(recursive=True)
    return int(run["infrastructure_pid"].rpartition(":")[2]) in {process.pid for process in below}


def manifests(store: Store) -> dict[str, str]:
    """When each artifact of the store was made, by its stage's name."""
    files = [file for kind in store.place.folders() for file in store.place.walk(kind)]
    found = [file.path for file in files if file.path.endswith("/manifest.json")]
    read = [json.loads(store.place.read(path)) for path in found]
    return {manifest["name"]: manifest["created_at"] for manifest in read}


def scores_of_an_undisturbed_run(stack: Any, values: dict[str, Any], folder: Path) -> dict[str, float]:
    """Of the same config, all in one process."""
    alone = {key: value for key, value in values.items() if key != "tracking"}
    alone |= {"store": {"root": str(folder / "undisturbed")}, "execution": {"device": "cpu"}}
    path = folder / "undisturbed.yaml"
    path.write_text(json.dumps(alone))
    stack.command("retort", "run", str(path))
    final = Store(str(folder / "undisturbed")).latest("killed", "final/test")
    assert final is not None
    return final.metrics
