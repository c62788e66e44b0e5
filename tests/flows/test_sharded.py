"""A whole run whose labeling is done in shards, side by side on this machine, and what is told of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.store import Store
from tasks.shards import Watch

Build = Callable[..., dict[str, Any]]
SHARDS = [f"stage0/pseudolabels/shard-{number}" for number in range(4)]


def labels_in(root: Path) -> dict[str, str]:
    manifest = Store(str(root)).latest("asked", "stage0/pseudolabels")
    assert manifest is not None
    return {file.path: file.sha256 for file in manifest.files}


def test_a_run_in_shards_makes_the_same_and_asks_once(
    asked_classes: dict[str, Any],
    endpoint_server: Any,
    configured: Build,
    run_here: Callable[..., Any],
    task_states: Callable[..., Any],
    tmp_path: Path,
) -> None:
    values = configured(asked_classes, tmp_path / "sharded", execution__shard_rows=20)
    sharded = run_here(values)
    asked = dict(endpoint_server.asked)
    assert set(asked.values()) == {1}
    whole = run_here(configured(asked_classes, tmp_path / "whole"))
    assert endpoint_server.asked == dict.fromkeys(asked, 2)
    assert labels_in(tmp_path / "sharded") == labels_in(tmp_path / "whole")
    assert sharded.summary.final.scores == whole.summary.final.scores
    assert sharded.summary.teachers[0].metrics["money"] == whole.summary.teachers[0].metrics["money"]
    assert {stage.name for stage in sharded.stages} == {stage.name for stage in whole.stages}

    shown = task_states(sharded.run_id, len(sharded.stages) + 5)["Completed"]
    assert {name: shown[name] for name in (*SHARDS, "stage0/pseudolabels/split")} == dict.fromkeys(
        (*SHARDS, "stage0/pseudolabels/split"), 1
    )

    forced = run_here(values, force=["stage0/pseudolabels"])
    (labeling,) = (stage for stage in forced.stages if stage.name == "stage0/pseudolabels")
    assert labeling.status == "MADE"
    assert endpoint_server.asked == dict.fromkeys(asked, 2), "the ledger has them all"


@pytest.mark.parametrize(
    ("seconds", "so_far", "told"),
    [([], 1000, False), ([10, 10], 50, False), ([10, 10], 61, True), ([100, 30, 110], 250, False), ([100], 301, True)],
)
def test_a_straggler_is_told_once(seconds: list[float], so_far: float, told: bool) -> None:
    watch = Watch("labels", {"a": "shard-0", "b": "shard-1"}, log=None, seconds=seconds)  # type: ignore[arg-type]
    began = {"a": 0.0, "elsewhere": 0.0}  # b still waits for a worker
    assert list(watch.stragglers(began, so_far)) == ([("a", so_far)] if told else [])
    watch.told.add("a")
    assert not list(watch.stragglers(began, so_far))
