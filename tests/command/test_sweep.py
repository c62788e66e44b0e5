"""`retort sweep`: one run per setting, told side by side."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from retort.commands import sweep as module
from retort.commands.sweep import Point, draw_sweep, settings_of, sweep, sweep_table
from retort.errors import ConfigError


def test_every_combination_is_a_setting() -> None:
    assert settings_of(["data.limit=5, 10", "method.seed=1,2"]) == [
        (("data.limit", "5"), ("method.seed", "1")),
        (("data.limit", "5"), ("method.seed", "2")),
        (("data.limit", "10"), ("method.seed", "1")),
        (("data.limit", "10"), ("method.seed", "2")),
    ]
    for wrong in ("data.limit", "data.limit=5", "data.limit=,5"):
        with pytest.raises(ConfigError, match="give a field and two values or more"):
            settings_of([wrong])


def test_a_wrong_setting_is_told_before_any_run(classes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(ConfigError, match=r"data\.limit = 0"):
        list(sweep(classes.save(), [], ["data.limit=5,0"]))


def test_runs_are_read_and_a_failed_one_does_not_end_the_others(classes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of `retort run --json`, which tests/flows checks."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if "data.limit=5" in command:
            return subprocess.CompletedProcess(command, 1, "")
        score = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 10}
        stages = [{"name": "vanilla-kd/test", "status": "HIT", "seconds": 0, "scores": {"accuracy": 0.75}}]
        told = {"stages": stages, "final": {"scores": {"accuracy": score}}, "seconds": 3.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(told) + "\n")

    monkeypatch.setattr(module.subprocess, "run", run)
    points = list(sweep(classes.save(), ["method.seed=3"], ["data.limit=5,10"]))
    assert asked[1][-6:] == ["--set", "method.seed=3", "--set", "data.limit=10", "--set", "tracking=null"]
    assert sweep_table(points).rows == (("5", "failed (1)", "-", "0"), ("10", "80.0 [70.0, 90.0]", "75.0", "3"))


def test_the_picture_names_field_metric_and_unit(tmp_path: Path) -> None:
    points = [
        Point((("data.limit", str(rows)),), "accuracy", 0.5 + rows / 1e4, 0.4, 0.99, {"vanilla-kd": 0.5}, 1.0)
        for rows in (100, 1000, 4000)
    ]
    draw_sweep(points, tmp_path / "sweep.svg")
    drawn = (tmp_path / "sweep.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("data.limit", "vanilla-kd", "1000"))
    assert "<!-- accuracy, percent, with 95 % intervals -->" in drawn


def test_errors_are_shown_in_the_unit_of_the_labels(tmp_path: Path) -> None:
    points = [
        Point((("data.limit", rows),), "rmse", value, value - 0.1, value + 0.25, {"vanilla-kd": 1.5}, 1.0)
        for rows, value in (("100", 1.25), ("200", 0.5))
    ]
    assert [row[1:3] for row in sweep_table(points).rows] == [("1.25 [1.15, 1.5]", "1.5"), ("0.5 [0.4, 0.75]", "1.5")]
    draw_sweep(points, tmp_path / "sweep.svg")
    assert "<!-- rmse, in the unit of the labels, with 95 % intervals -->" in (tmp_path / "sweep.svg").read_text()
