"""Running the flow here or in a process of its own, against one real Prefect server."""

import asyncio
import copy
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from retort.config import MckdConfig
from retort.recipes.mckd.checks import resolve

ROOT = Path(__file__).parents[2]
RETORT = str(Path(sys.executable).with_name("retort"))


@pytest.fixture(scope="session")
def configured() -> Callable[..., dict[str, Any]]:
    """A copy of a config with its store at `root`, and dotted fields set."""

    def build(values: dict[str, Any], root: Path | str, **fields: Any) -> dict[str, Any]:
        changed = copy.deepcopy(values)
        changed["store"] = {"root": str(root)}
        for name, value in fields.items():
            *parents, last = name.split("__")
            node = changed
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return changed

    return build


@pytest.fixture(scope="session")
def run_here(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """The flow in this process, as `retort run` starts it but without its checks; returns its `Finished`."""
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings

    from flows.mckd import mckd
    from flows.run import CHECKED

    def run(values: dict[str, Any], **scope: Any) -> Any:
        CHECKED.set(resolve(MckdConfig.model_validate(values)))
        try:
            with temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_LOGGING_LEVEL: "CRITICAL"}):
                return asyncio.run(mckd(f"{values['name']}.yaml", **scope))
        finally:
            CHECKED.set(None)

    level = logging.getLogger("prefect").level
    logging.getLogger("prefect").setLevel(logging.CRITICAL)
    yield run
    logging.getLogger("prefect").setLevel(level)


@pytest.fixture(scope="session")
def start_command(prefect_api: str) -> Callable[..., subprocess.Popen[str]]:
    """`retort run CONFIG --json`, in a process group of its own."""

    def start(values: dict[str, Any], folder: Path, *options: str) -> subprocess.Popen[str]:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{values['name']}.yaml"
        path.write_text(yaml.safe_dump(values))
        return subprocess.Popen(
            [RETORT, "run", str(path), "--json", *options],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": prefect_api},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="session")
def run_there(start_command: Callable[..., subprocess.Popen[str]]) -> Callable[..., dict[str, Any]]:
    """The command to its end; returns what it printed for machines."""

    def run(values: dict[str, Any], folder: Path, *options: str) -> dict[str, Any]:
        process = start_command(values, folder, *options)
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        finished: dict[str, Any] = json.loads(out.splitlines()[-1])
        return finished

    return run


@pytest.fixture(scope="session")
def task_states(prefect_api: str) -> Callable[[str, int], dict[str, Counter[str]]]:
    """What the Prefect UI shows of a run of so many tasks that has ended: their names by their state's name."""

    def now(run_id: str) -> dict[str, Counter[str]]:
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        answer = httpx.post(f"{prefect_api}/task_runs/filter", json=body, timeout=60)
        answer.raise_for_status()
        states: dict[str, Counter[str]] = {}
        for task_run in answer.json():
            states.setdefault(task_run["state_name"], Counter())[task_run["name"]] += 1
        return states

    def ask(run_id: str, num_tasks: int) -> dict[str, Counter[str]]:
        end = time.monotonic() + 300
        while time.monotonic() < end:  # task runs reach the server as events, some time after they happened
            states = now(run_id)
            if not states.keys() & {"Pending", "Running"} and sum(map(Counter.total, states.values())) >= num_tasks:
                break
            time.sleep(0.2)
        return states

    return ask


@pytest.fixture(scope="session")
def manifests() -> Callable[[Path], dict[str, bytes]]:
    """The artifacts of a store that is a folder: the name of the stage that made each, and its manifest."""

    def read(root: Path) -> dict[str, bytes]:
        found = [path.read_bytes() for path in root.glob("*/??/*/manifest.json")]
        return {json.loads(data)["name"]: data for data in found}

    return read


@pytest.fixture
def night(prefect_api: str) -> Callable[..., Any]:
    """The flow `nightly` in this process, on the config in a file; returns its `Night`."""
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings

    from flows.nightly import nightly

    def run(path: Path, **parameters: Any) -> Any:
        with temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_LOGGING_LEVEL: "CRITICAL"}):
            return asyncio.run(nightly(str(path), **parameters))

    return run


@pytest.fixture
def artifact(prefect_api: str) -> Callable[[str, str], str]:
    """The text of a run's artifact of this key."""

    def read(run_id: str, key: str) -> str:
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
        (found,) = httpx.post(f"{prefect_api}/artifacts/filter", json=body, timeout=60).json()
        return str(found["data"])

    return read


def label_of(body: dict[str, Any]) -> str:
    item = body["messages"][-1]["content"]
    return "up" if "great" in item or "good" in item else "down"


@pytest.fixture
def asked_classes(
    tiny_classes: dict[str, Any],
    endpoint_server: Any,
    configured: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> dict[str, Any]:
    """The config with the server as its teacher; its address is not part of who the teacher is."""
    monkeypatch.setenv("RETORT_TEST_TEACHER", endpoint_server.url)
    endpoint_server.reply = label_of
    teacher = {
        "kind": "endpoint",
        "model": "scripted",
        "url": "${RETORT_TEST_TEACHER}",
        "concurrency": 4,
        "prices": {"prompt": 1.0, "completion": 10.0},
    }
    return configured(tiny_classes, tmp_path / "store", name="asked", teacher=teacher)
