"""Parts of a run: only some stages, from one stage on, some of them again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import ConfigError

Build = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_only_from_and_again(
    tiny_slots: dict[str, Any], configured: Build, run_here: Callable[..., Any], manifests: Any, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    values = configured(tiny_slots, root, name="parts")

    with pytest.raises(ConfigError, match=r"only = 'stage1/student-0': needs stage0/pseudolabels, which is not in"):
        run_here(values, only=["stage1/student-0"])
    with pytest.raises(ConfigError, match=r"from_stage = 'stage1': ingest/labeled comes before it and is not"):
        run_here(values, from_stage="stage1")
    with pytest.raises(ConfigError, match=r"force = 'stage9': no stage is called that; stages: ingest/labeled, "):
        run_here(values, force=["stage9"])
    assert not manifests(root)

    part = run_here(values, only=["ingest", "stage0", "stage1/student-0"])
    made = {"ingest/labeled", "ingest/unlabeled", "ingest/test", "stage0/pseudolabels", "stage1/student-0"}
    assert {stage.name for stage in part.stages} - {"stage0/label-quality"} == made
    assert part.summary is None
    before = manifests(root)

    whole = run_here(values, from_stage="stage1")
    assert {stage.name for stage in whole.stages if stage.status == "HIT"} == set(before)

    # A stage again, and what rests on it: not its sibling, not what came before.
    again = run_here(values, force=["stage1/student-1"])
    status = {stage.name: stage.status for stage in again.stages}
    untouched = ("stage0/pseudolabels", "stage1/student-0", "stage1/cross-labels-0", "stage1/judge-0")
    assert {status[name] for name in untouched} == {"HIT"}
    renewed = ("stage1/student-1", "stage1/cross-labels-1", "stage1/pseudolabels", "final/student", "report")
    assert {status[name] for name in renewed} == {"MADE"}
    assert again.summary.final.scores == whole.summary.final.scores
