"""A tiny student, trained and evaluated by the steps themselves, without Prefect or child processes."""

from typing import Any, NamedTuple

from retort.artifacts.scores import PREDICTIONS
from retort.config import MckdConfig
from retort.io.parquet import Row, read_rows
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.checks import resolve
from retort.recipes.mckd.steps import evaluate_student, ingest, train_student
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store.opening import open_store


class Trained(NamedTuple):
    """A student in a store, and the scores of the step `evaluate` for it on the test rows."""

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


def train(values: dict[str, Any]) -> Trained:
    """A student that has learned something from the labeled rows."""
    student = {**values["student"], "training": {**values["student"]["training"], "epochs": 40}}
    config = resolve(MckdConfig.model_validate({**values, "student": student}))
    labeled, test = (made_or_found(config, ingest(config, role)) for role in ("labeled", "test"))
    trained = _made(config, train_student(config, "final/student", labeled))
    return Trained(config, trained, _made(config, evaluate_student(config, "final/scores", trained, test)))


def _made(config: MckdConfig, step: Step) -> ArtifactRef:
    return make(config, step, 0, lambda *_: None)
