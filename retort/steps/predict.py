"""`predict`: an arm's predictions on dev or test rows. Students make one set per seed, a baseline only one."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from retort.artifacts.examples import Examples
from retort.artifacts.grids import Grid
from retort.artifacts.probabilities import Probabilities, write_probabilities
from retort.config import ClassificationConfig
from retort.config.soft_label import TinyConfig
from retort.data.fields import fields_of
from retort.problems import problem_for
from retort.problems.base import Floats
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput

Fields = list[list[str]]
"""Rows, each with one text per field."""


class Predict(Step):
    """Make an arm's predictions on some rows."""

    kind = "predict"
    version = 1
    artifact = Probabilities

    problem: ClassificationConfig
    fields: list[str]
    rows: ArtifactRef

    def run(self, context: StepContext) -> StepOutput:
        rows = list(Examples.open(context.store, self.rows).rows())
        names = tuple(self.fields)
        seeds, probabilities = self.predicted(context, [fields_of(row["text"], names) for row in rows])
        ids = [row["example_id"] for row in rows]
        return StepOutput(rows=write_probabilities(context.folder, ids, list(seeds), probabilities))

    @abstractmethod
    def predicted(self, context: StepContext, texts: Fields) -> tuple[Sequence[int], Floats]:
        """Return (seeds, probabilities `(seeds, rows, classes)`)."""


class PredictGrid(Predict):
    """Predict with the students of an arm's best setting."""

    arm: Literal["tiny"] = "tiny"
    student: TinyConfig
    grid: ArtifactRef

    def predicted(self, context: StepContext, texts: Fields) -> tuple[Sequence[int], Floats]:
        from retort.students.tiny.network import predict

        grid = Grid.open(context.store, self.grid)
        vocabulary, weights = grid.students()
        encoded = vocabulary.encode(texts)
        return grid.seeds, np.stack([predict(one, encoded) for one in weights])


class PredictBaseline(Predict):
    """Predict with a baseline. It is fitted each time, which takes almost no time."""

    arm: Literal["tfidf", "majority"]
    seed: int
    train: ArtifactRef

    def predicted(self, context: StepContext, texts: Fields) -> tuple[Sequence[int], Floats]:
        """Reads the training rows' gold labels, as every arm does."""
        from retort.students.tiny.baselines import majority, tfidf

        names, classes = tuple(self.fields), problem_for(self.problem).classes
        train = Examples.open(context.store, self.train).gold()
        gold = np.array([classes.index(example.label or "") for example in train])
        if self.arm == "majority":
            return [0], majority(gold, len(classes), len(texts))[None]
        trained = [fields_of(example.text, names) for example in train]
        return [0], tfidf(trained, gold, texts, len(classes))[None]
