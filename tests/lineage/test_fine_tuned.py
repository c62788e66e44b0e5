"""A student that was fine-tuned on the labeled set: its history goes on behind the student that it was before."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from retort.config import MckdConfig
from retort.lineage.row import history
from retort.lineage.student import Traced, trace
from retort.recipes.execute import make
from retort.recipes.mckd.pipeline import distill, ingest_data
from retort.records.mckd import MckdResult
from retort.steps.base import Step
from retort.store.opening import open_store
from retort.tracking.champion import _trained

Tuned = tuple[MckdConfig, MckdResult]


@pytest.fixture(scope="module")
def tuned(nights: Any, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """The first night again, in a copy of its store and with fine-tuning. The teacher is not asked again."""
    root = Path(shutil.copytree(nights.store.root, tmp_path_factory.mktemp("tuned") / "store"))
    values = nights.config.model_dump(mode="json", exclude_defaults=True)
    values["method"]["fine_tuning"] = {"kind": "always", "epochs": 1}
    config = MckdConfig.model_validate({**values, "store": {"root": str(root)}})
    store = open_store(config.store)

    async def do(step: Step) -> Any:
        found = store.reuse(config.name, step)
        return store.ref(found) if found else make(config, step, 0, lambda *_: None)

    async def run() -> MckdResult:
        return await distill(config, await ingest_data(config, do), do)

    return config, asyncio.run(run())


@pytest.fixture
def traced(tuned: Tuned) -> Traced:
    return Traced(tuned[1].final_student.uri, None)


def test_a_champion_was_trained_as_the_student_before_it_was_fine_tuned(tuned: Tuned) -> None:
    config, result = tuned
    store = open_store(config.store)
    student = store.find("students", result.final_student.key)
    assert student is not None
    before = _trained(store, student)
    assert (student.name, before.name) == ("final/student", "final/before-fine-tuning")
    assert _trained(store, before) == before


def test_the_student_before_is_no_warm_start_but_part_of_its_lineage(traced: Traced) -> None:
    lineage = trace(traced)
    assert lineage.start is None
    assert [step.name for step in lineage.steps][-2:] == ["final/before-fine-tuning", "final/student"]


def test_every_stage_back_to_the_teacher_is_told(traced: Traced) -> None:
    names = {step.name for step in trace(traced).steps}
    assert names >= {"final/before-fine-tuning", "fine-tuning/pseudolabels", "stage0/pseudolabels", "ingest/unlabeled"}


def test_a_row_of_the_pool_trained_the_student_before(traced: Traced) -> None:
    row = history(traced, "unlabeled-0")
    assert "final/before-fine-tuning" in row.trained
    assert row.labels[0].labeler == "teacher"


def test_a_row_of_the_labeled_set_trained_it(traced: Traced) -> None:
    assert "final/student" in history(traced, "labeled-3").trained
