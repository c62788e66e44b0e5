"""`predict`: an arm's predictions on dev or test rows. Students make one set per seed, a baseline only one."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
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

Texts = Callable[[], Iterator[list[str]]]
"""Returns a fresh iterator over the rows, each with one text per field."""


class Predict(Step):
    """Make an arm's predictions on some rows."""

    kind = "predict"
    version = 1
    artifact = Probabilities

    problem: ClassificationConfig
    fields: list[str]
    rows: ArtifactRef

    def run(self, context: StepContext) -> StepOutput:
        examples, names = Examples.open(context.store, self.rows), tuple(self.fields)

        def texts() -> Iterator[list[str]]:
            return (fields_of(row["text"], names) for row in examples.rows(["text"]))

        def ids() -> Iterator[str]:
            return (row["example_id"] for row in examples.rows(["example_id"]))

        return StepOutput(rows=write_probabilities(context.folder, ids, self.predicted(context, texts)))

    @abstractmethod
    def predicted(self, context: StepContext, texts: Texts) -> Iterator[tuple[int, Iterable[Floats]]]:
        """Yield each seed with the probabilities `(classes,)` of every row."""


class PredictGrid(Predict):
    """Predict with the students of an arm's best setting."""

    arm: Literal["tiny"] = "tiny"
    student: TinyConfig
    grid: ArtifactRef

    def predicted(self, context: StepContext, texts: Texts) -> Iterator[tuple[int, Iterable[Floats]]]:
        from retort.students.tiny.bags import EncodedRows
        from retort.students.tiny.network import predict

        grid = Grid.open(context.store, self.grid)
        vocabulary, weights = grid.students()
        encoded = EncodedRows(texts(), vocabulary)
        for seed, one in zip(grid.seeds, weights, strict=True):
            yield seed, chain.from_iterable(predict(one, encoded))


class PredictBaseline(Predict):
    """Predict with a baseline. It is fitted each time, which takes almost no time."""

    arm: Literal["tfidf", "majority"]
    seed: int
    train: ArtifactRef

    def predicted(self, context: StepContext, texts: Texts) -> Iterator[tuple[int, Iterable[Floats]]]:
        """Reads the training rows' gold labels, as every arm does."""
        from retort.students.tiny.baselines import majority, tfidf

        names, classes = tuple(self.fields), problem_for(self.problem).classes
        train = Examples.open(context.store, self.train).gold()
        gold = np.array([classes.index(example.label or "") for example in train], dtype=np.int32)
        if self.arm == "majority":
            frequencies = majority(gold, len(classes))
            yield 0, (frequencies for _ in texts())
            return
        trained = [fields_of(example.text, names) for example in train]
        yield 0, chain.from_iterable(tfidf(trained, gold, texts(), len(classes)))
