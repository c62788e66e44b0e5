"""`retort run` with a config of the soft-label recipe, against a real Prefect server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

RETORT = str(Path(sys.executable).with_name("retort"))


def retort(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [RETORT, *arguments], capture_output=True, text=True, env=environment, timeout=900, check=False
    )


@pytest.mark.slow
def test_a_run_and_the_same_run_again(prefect_api: str, new_job: Any, tmp_path: Path) -> None:
    job = new_job(tmp_path)
    job.values |= {"arms": ["hard", "soft-grid", "majority"]}
    job.values["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    config = job.save()
    done = retort("run", config, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {stage["status"] for stage in told["stages"] if not stage["name"].startswith("ingest")} == {"MADE"}
    assert told["final"]["stage"] in ("hard", "soft-grid")
    assert set(told["final"]["scores"]["unseen"]) == {"accuracy", "macro_f1", "quadratic_weighted_kappa"}
    assert "colours: unseen, 40 rows" in done.stderr
    assert "report: made in" in done.stderr, "without a terminal, a line for every step"
    assert {"report", "scores-unseen", "scores-by-arm"} <= artifacts(prefect_api, told["run_id"])

    quiet = retort("run", config, "--json", "--quiet")
    assert quiet.stderr == ""
    again = json.loads(quiet.stdout)
    assert {stage["status"] for stage in again["stages"]} == {"HIT"}
    shown = retort("run", config)
    assert "colours: unseen, 40 rows" in shown.stdout
    assert f"Report:   retort report {config}" in shown.stdout.splitlines()
    assert shown.stderr == ""
    planned = json.loads(retort("plan", config, "--json").stdout)
    assert {stage["status"] for stage in planned["stages"]} == {"HIT"}
    assert planned["teacher"] == {"kind": "probabilities", "requests": 0, "money": 0.0}
    report = retort("report", config, "--out", str(tmp_path / "page"))
    assert report.returncode == 0, report.stderr
    assert "soft-grid" in (tmp_path / "page/report.html").read_text()


def artifacts(api: str, run_id: str) -> set[str]:
    body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    return {one["key"] for one in httpx.post(f"{api}/artifacts/filter", json=body, timeout=60).json()}


def test_what_is_wrong_ends_it_at_once_with_a_sentence(job: Any) -> None:
    job.values["grid"]["lambda"] = [-1]
    refused = retort("run", job.save())
    assert refused.returncode == 2
    assert "grid.lambda.0 = -1: must be more than 0" in refused.stderr
