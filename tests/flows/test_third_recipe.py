"""A third recipe, in the lines of one class, has what the other two have: no other file knows of it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.artifacts.verdicts import GateVerdict
from retort.commands.doctor import examine
from retort.commands.plan import plan
from retort.commands.report import copy_report
from retort.config import MckdConfig
from retort.recipes import RECIPES, load_config
from retort.recipes.base import Do
from retort.recipes.mckd.pipeline import ingest_data
from retort.recipes.mckd.recipe import MckdRecipe
from retort.recipes.mckd.steps import evaluate_student, train_student
from retort.recipes.mckd.teacher import teacher_labels
from retort.records.mckd import MckdResult
from retort.records.result import Champion
from retort.store.opening import open_store
from retort.tracking.registry import reigning_version


class VanillaConfig(MckdConfig):
    """One student, on the teacher's labels of the whole pool."""


class VanillaRecipe(MckdRecipe):
    kind, config = "vanilla", VanillaConfig

    async def distill(self, config: MckdConfig, do: Do, champion: Champion | None) -> MckdResult:
        data = await ingest_data(config, do)
        teacher = await teacher_labels(config, data, do)
        student = await do(train_student(config, "final/student", teacher.labels))
        scores = await do(evaluate_student(config, "final/test", student, data.test))
        return MckdResult(data=data, labels=(teacher.labels,), final_student=student, final_scores=scores)


@pytest.fixture
def vanilla(tiny_slots: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(RECIPES, "vanilla", VanillaRecipe())
    own = {"kind": "vanilla", "name": "plain", "method": {"stages": 1}, "store": {"root": str(tmp_path / "store")}}
    path = tmp_path / "vanilla.yaml"
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    path.write_text(yaml.safe_dump({**tiny_slots, **own, "tracking": tracking}))
    return path


@pytest.mark.slow
def test_it_is_planned_run_promoted_at_night_and_reported(vanilla: Path, prefect_api: str, tmp_path: Path) -> None:
    config = load_config(vanilla)
    assert type(config) is VanillaConfig
    names = [step.name for step in asyncio.run(plan(config)).stages]
    assert names[-5:] == ["final/student", "final/test", "gate", "report", "tracking"]

    # The first night.
    night = _in_prefect(prefect_api, _night, vanilla)
    assert night.promotion.outcome == "promoted"
    assert night.changes["unlabeled"].new == 60
    assert {step.name for step in night.finished.stages} == set(names)
    assert reigning_version(config.tracking.uri, "plain").version == "1"
    made_anew = {step.name for step in asyncio.run(plan(config)).stages if step.status == "MISS"}
    assert made_anew == {"gate", "report", "tracking"}, "its student reigns now, which these have to say"
    assert {finding.verdict for finding in examine(config)} <= {"ok", "note"}

    # A run by its own flow, with another seed: the gate compares it with the champion.
    finished = _in_prefect(prefect_api, _run, vanilla, ["method.seed=1"])
    store = open_store(config.store)
    verdict = GateVerdict.open(store, store.ref(store.latest("plain", "gate"))).verdict()
    assert verdict.contest is not None
    assert finished.summary.final.scores["slot_f1"].n == 20
    assert json.loads(finished.model_dump_json())["summary"]["kept_stage"] == 1

    pages = copy_report(store, config, tmp_path / "page")
    assert "Gate" in next(page for page in pages if page.suffix == ".html").read_text()


def _in_prefect(api: str, call: Callable[..., Any], *arguments: Any) -> Any:
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api, PREFECT_LOGGING_LEVEL: "CRITICAL"}):
        return asyncio.run(call(*arguments))


def _night(path: Path) -> Any:
    from flows.nightly import nightly

    return nightly(str(path))


def _run(path: Path, overrides: list[str]) -> Any:
    """As `retort run` chooses the flow."""
    from flows import run
    from flows.launch import flow_of

    config = load_config(path, overrides)
    flow = flow_of(config)
    run.CHECKED.set(None)
    return flow(str(path), overrides=overrides)
