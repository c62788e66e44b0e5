"""Every entrypoint, loaded as a worker loads it: in a process of its own, from the checkout's root."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.mark.parametrize("entrypoint", [one["entrypoint"] for one in deployments()])
def test_a_worker_can_load_it(entrypoint: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PREFECT_API_URL")}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, entrypoint],
        cwd=ROOT,
        env={**environment, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert loaded.returncode == 0, loaded.stderr
    told = json.loads(loaded.stdout.splitlines()[-1])
    deployment = next(one for one in deployments() if one["entrypoint"] == entrypoint)
    assert told["name"] == deployment["name"]
    properties = told["schema"]["properties"]
    assert deployment.get("parameters", {}).keys() <= properties.keys()
    assert all(field.get("description") for field in properties.values()), "a person has to fill this form"
    assert told["heavy"] == []
