"""Every entrypoint, loaded as a worker loads it: in a process of its own, from the checkout's root."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.work_pools import STEP_FLOW

ROOT = Path(__file__).parents[2]
LOAD = """
import json, sys
from prefect.flows import load_flow_from_entrypoint
flow = load_flow_from_entrypoint(sys.argv[1])
heavy = [name for name in ("torch", "transformers", "mlflow", "pandas") if name in sys.modules]
print(json.dumps({"name": flow.name, "schema": flow.parameters.model_dump(), "heavy": heavy}))
"""


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: one["name"])
def test_a_worker_can_load_it(deployment: dict[str, Any], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PREFECT_API_URL")}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, deployment["entrypoint"]],
        cwd=ROOT,
        env={**environment, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert loaded.returncode == 0, loaded.stderr
    told = json.loads(loaded.stdout.splitlines()[-1])
    if told["name"] == STEP_FLOW:  # deployed once for each pool, under the pool's name
        assert deployment["name"] == deployment["work_pool"]["name"]
    else:
        assert deployment["name"] == told["name"]
    properties = told["schema"]["properties"]
    assert deployment.get("parameters", {}).keys() <= properties.keys()
    assert all(field.get("description") for field in properties.values()), "a person has to fill this form"
    assert told["heavy"] == []


def test_each_gpu_pool_has_the_flow_of_one_step() -> None:
    pools = [one["work_pool"]["name"] for one in deployments() if one["entrypoint"] == "flows/steps.py:step"]
    assert sorted(pools) == ["gpu-student", "gpu-teacher"]
