"""Tiny students, trained and evaluated by the stages themselves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from retort.config import MckdConfig
from retort.io.parquet import Row, read_rows
from retort.recipes.execute import make, open_store
from retort.recipes.mckd.checks import ingest_role, resolve
from retort.records.base import ArtifactRef, Step
from retort.steps.evaluate import PREDICTIONS, evaluate_student
from retort.steps.train_student import train_student


class Trained(NamedTuple):
    """A student in a store, and what the evaluate stage said of the test rows with it."""

    config: MckdConfig
    student: ArtifactRef
    scores: ArtifactRef

    @property
    def test_file(self) -> str:
        return str(self.config.data.test)

    @property
    def student_address(self) -> tuple[str, str]:
        """(address, key)."""
        return self.student.uri, self.student.key

    def evaluated(self) -> list[Row]:
        return list(read_rows(open_store(self.config.store).fetch(self.scores) / PREDICTIONS))


Train = Callable[[dict[str, Any]], Trained]


@pytest.fixture(scope="session")
def train() -> Train:
    """One student that has learnt something from the labelled rows, without Prefect and without children."""

    def build(values: dict[str, Any]) -> Trained:
        student = {**values["student"], "training": {**values["student"]["training"], "epochs": 40}}
        config = resolve(MckdConfig.model_validate({**values, "student": student}))
        store = open_store(config.store)
        labeled, test = (ingest_role(config, store, role) for role in ("labeled", "test"))
        trained = _made(config, train_student(config, "final/student", labeled))
        return Trained(config, trained, _made(config, evaluate_student(config, "final/scores", trained, test)))

    return build


def _made(config: MckdConfig, stage: Step) -> ArtifactRef:
    return make(config, stage, 0, lambda *_: None)


@pytest.fixture(scope="session")
def slots_student(train: Train, tiny_slots: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train({**tiny_slots, "store": {"root": str(tmp_path_factory.mktemp("slots-served"))}})


@pytest.fixture(scope="session")
def classes_student(train: Train, tiny_classes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train({**tiny_classes, "store": {"root": str(tmp_path_factory.mktemp("classes-served"))}})
