"""Two real tiny nights: an asked teacher, two stages, real students, real MLflow, each with its record."""

import asyncio
import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from endpoint_server import EndpointServer
from retort.config import MckdConfig
from retort.recipes.execute import make
from retort.recipes.mckd.pipeline import distill, ingest_data
from retort.recipes.mckd.steps import report, track
from retort.records.mckd import MckdResult
from retort.steps.base import Step
from retort.store import Store
from retort.store.runs import RunRecord, keep_run

ORIGIN = {"git.commit": "abc123", "prefect.flow_run_id": "prefect-run-1", "prefect.url": "http://prefect/run-1"}
BROKEN = "unlabeled-8"
"""A row to which the teacher answers nonsense, however often it is asked."""

UNUSABLE = "unlabeled-null"
"""A row of the pool without a text."""


@dataclass(frozen=True)
class Nights:
    folder: Path
    config: MckdConfig
    """Of the first night."""
    old: MckdResult
    """The first night's run: version 1."""
    new: MckdResult
    """The second night's, of another seed: version 2."""

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"


def _reply(body: dict[str, Any]) -> str:
    item = body["messages"][-1]["content"]
    if "iunlabeled" in item:
        return "no idea"
    return "up" if "great" in item or "good" in item else "down"


def _night(config: MckdConfig, day: int) -> MckdResult:
    """A run as the flow does it, without Prefect; its record as of that day."""
    store = Store(config.store.root)
    assert config.tracking is not None

    async def do(step: Step) -> Any:
        found = store.reuse(config.name, step)
        return store.ref(found) if found else make(config, step, 0, lambda *_: None)

    async def everything() -> MckdResult:
        distilled = await distill(config, await ingest_data(config, do), do)
        page = await do(report(config, distilled))
        tracked = await do(track(config, distilled, page, ORIGIN))
        artifacts = tuple(f"{ref.kind}/{ref.key}" for ref in (*distilled.refs(), page, tracked))
        at = f"2026-01-{day:02}T02:00:00+00:00"
        run_id = f"{day:08}-run"
        keep_run(store, RunRecord(name=config.name, run_id=run_id, started_at=at, ended_at=at, artifacts=artifacts))
        return distilled

    return asyncio.run(everything())


@pytest.fixture(scope="session")
def nights(tiny_classes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    with EndpointServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETORT_TEST_TEACHER", server.url)
        server.reply = _reply
        values = copy.deepcopy(tiny_classes)
        values["teacher"] = {"kind": "endpoint", "model": "scripted", "url": "${RETORT_TEST_TEACHER}", "concurrency": 4}
        values["problem"]["labels"] = ["up", "down"]
        pool = Path(values["data"]["unlabeled"]).read_text()
        (folder / "unlabeled.jsonl").write_text(f'{pool}{{"id": "{UNUSABLE}", "text": null}}\n')
        values["data"]["unlabeled"] = str(folder / "unlabeled.jsonl")
        values["store"] = {"root": str(folder / "store")}
        values["tracking"] = {"uri": f"sqlite:///{folder}/mlflow.db"}
        values["student"]["training"]["epochs"] = 1
        config = MckdConfig.model_validate(values)
        values["method"]["seed"] = 1
        yield Nights(folder, config, _night(config, 1), _night(MckdConfig.model_validate(values), 2))


@pytest.fixture
def aged(nights: Nights, tmp_path: Path) -> Callable[..., MckdConfig]:
    """A copy of the nights' store in which everything is old; the config says where it is."""

    def copied() -> MckdConfig:
        root = tmp_path / "store"
        shutil.copytree(nights.store.root, root)
        for path in root.rglob("*"):
            os.utime(path, (1, 1))
        return nights.config.model_copy(update={"store": nights.config.store.model_copy(update={"root": str(root)})})

    return copied


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[MckdConfig], str]:
    def written(config: MckdConfig) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json", exclude_defaults=True)))
        return str(path)

    return written
