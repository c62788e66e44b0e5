"""Every entrypoint, loaded as a worker loads it: in a process of its own, from the checkout's root."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOAD = """
import json, sys
from prefect.flows import load_flow_from_entrypoint
flow = load_flow_from_entrypoint(sys.argv[1])
heavy = [name for name in ("torch", "transformers", "mlflow", "pandas") if name in sys.modules]
print(json.dumps({"name": flow.name, "schema": flow.parameters.model_dump(), "heavy": heavy}))
"""


@pytest.mark.parametrize("entrypoint", ["flows/mckd.py:mckd"])
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
    assert told["name"] == entrypoint.partition(":")[2]
    schema = told["schema"]
    assert schema["required"] == ["config"]
    config = schema["definitions"]["Config"]
    assert {"name", "problem", "data", "teacher", "student", "method", "store"} <= config["properties"].keys()
    assert config["properties"]["name"]["description"]
    assert told["heavy"] == []
