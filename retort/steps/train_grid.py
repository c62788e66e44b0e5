"""`train-tiny`: trains every setting of an arm side by side, from the same seeds, and keeps the best on the dev rows.

An arm is a loss. All arms have the same rows, vocabulary, initial weights and order of batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retort.artifacts.examples import Examples
from retort.artifacts.grids import Grid, TriedSetting, write_grid
from retort.artifacts.probabilities import Probabilities
from retort.config import ClassificationConfig
from retort.config.soft_label import TinyConfig
from retort.data.fields import fields_of
from retort.errors import StageFailed
from retort.io.database import query
from retort.problems import problem_for
from retort.records.base import ArtifactRef
from retort.steps.base import STUDENT, Resources, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.tiny.shape import Array, TinyRows, TinyShape, TinyTraining, TrainedStudent
    from retort.students.tiny.vocabulary import Vocabulary


class TrainGrid(Step):
    """Train every setting of an arm from the same seeds, side by side."""

    kind = "train-tiny"
    version = 1
    artifact = Grid

    problem: ClassificationConfig
    fields: list[str]
    """The columns that the students read, in this order."""
    student: TinyConfig
    settings: list[dict[str, Any]]
    """Each has the fields of `retort.students.tiny.shape.Setting` other than the seed."""
    label_smoothing: float | None
    """The share of each row's gold label that is spread over all classes, instead of a teacher's probabilities."""
    seeds: list[int]
    train: ArtifactRef
    dev: ArtifactRef
    probabilities: ArtifactRef | None = None
    """The teacher's probabilities for the training rows."""
    pool: ArtifactRef | None = None
    """More training rows; their gold labels are not used."""
    pool_probabilities: ArtifactRef | None = None

    @property
    def resources(self) -> Resources:
        return STUDENT

    def run(self, context: StepContext) -> StepOutput:
        from retort.students.tiny.shape import Setting
        from retort.students.tiny.training import train_students

        classes = problem_for(self.problem).classes
        train, dev, vocabulary = self._rows(context, classes)
        students = train_students(
            train,
            dev,
            [Setting(seed=seed, **fields) for fields in self.settings for seed in self.seeds],
            vocabulary,
            shape_of(self.fields, self.student),
            training_of(self.student),
            num_classes=len(classes),
            progress=context.progress,
        )
        size = len(self.seeds)
        groups = [students[start : start + size] for start in range(0, len(students), size)]
        tried = [_tried(fields, group) for fields, group in zip(self.settings, groups, strict=True)]
        # The highest accuracy on the dev rows over all seeds; ties go to the lowest loss.
        best = max(range(len(tried)), key=lambda at: (round(tried[at].dev_accuracy, 9), -tried[at].dev_loss))
        kept = groups[best]
        write_grid(context.folder, tried, best, self.seeds, vocabulary, [dict(one.weights) for one in kept])
        return StepOutput(
            rows=len(train.gold),
            metrics={"dev_accuracy": tried[best].dev_accuracy, "dev_loss": tried[best].dev_loss},
            counts={"students": len(students)},
            details={"setting": tried[best].setting, "parameters": num_parameters_of(kept[0].weights)},
        )

    def _rows(self, context: StepContext, classes: tuple[str, ...]) -> "tuple[TinyRows, TinyRows, Vocabulary]":
        """Return (training rows, dev rows, vocabulary). The vocabulary comes from the training texts only."""
        from retort.students.tiny.bags import EncodedRows
        from retort.students.tiny.shape import TinyRows
        from retort.students.tiny.vocabulary import Vocabulary

        names = tuple(self.fields)
        train, dev = Examples.open(context.store, self.train), Examples.open(context.store, self.dev)
        pool = Examples.open(context.store, self.pool) if self.pool else None

        def texts() -> Iterator[list[str]]:
            rows = chain(train.gold_rows(["text"]), pool.rows(["text"]) if pool else ())
            return (fields_of(row["text"], names) for row in rows)

        vocabulary = Vocabulary.fit(texts(), shape_of(self.fields, self.student))
        encoded = EncodedRows(texts(), vocabulary)
        labeled = _gold(train, classes)
        gold = np.concatenate([labeled, np.full(len(encoded) - len(labeled), -1, dtype=np.int32)])
        taught = TinyRows(encoded, gold, self._probabilities(context, classes, train, gold, pool))
        judged = EncodedRows((fields_of(row["text"], names) for row in dev.gold_rows(["text"])), vocabulary)
        return taught, TinyRows(judged, _gold(dev, classes)), vocabulary

    def _probabilities(
        self,
        context: StepContext,
        classes: tuple[str, ...],
        train: Examples,
        gold: NDArray[np.int32],
        pool: Examples | None,
    ) -> "Array | None":
        """`(rows, classes)`, first of the training rows and then of the pool: the teacher's (NaN where it has none), or
        smoothed gold labels."""
        from retort.students.tiny.baselines import smoothed

        if self.label_smoothing is not None:
            return smoothed(gold, len(classes), self.label_smoothing).astype(np.float32)
        if self.probabilities is None:
            return None
        known = Probabilities.open(context.store, self.probabilities)
        parts = [known.beside(train.gold_path, classes)]
        if pool and self.pool_probabilities:
            parts.append(Probabilities.open(context.store, self.pool_probabilities).beside(pool.path, classes))
        found = np.full((len(gold), len(classes)), np.nan, dtype=np.float32)
        start = 0
        for part in chain(*parts):
            found[start : start + len(part)] = part
            start += len(part)
        if pool:
            _move_shared(found, train.gold_path, pool.path)
        if np.isnan(found).all():
            raise StageFailed(f"{self.name}: the teacher has no probabilities for any training row")
        return found


_SHARED = """
    SELECT labeled.file_row_number, pooled.file_row_number + (SELECT count(*) FROM read_parquet($train))
    FROM read_parquet($train, file_row_number = true) AS labeled
    JOIN read_parquet($pool, file_row_number = true) AS pooled USING (example_id)
"""


def _move_shared(probabilities: "Array", train: Path, pool: Path) -> None:
    """A training row that is in the pool too teaches its gold label there and its probabilities here, those of the
    teacher that was not trained on it."""
    for batch in query(_SHARED, train=str(train), pool=str(pool)):
        labeled, pooled = (column.to_numpy() for column in batch.columns)
        own = probabilities[labeled]
        probabilities[pooled] = np.where(np.isnan(own), probabilities[pooled], own)
        probabilities[labeled] = np.nan


def _gold(examples: Examples, classes: tuple[str, ...]) -> NDArray[np.int32]:
    """`(rows,)`: the class of each gold-labeled row."""
    return np.fromiter((classes.index(row["label"]) for row in examples.gold_rows(["label"])), dtype=np.int32)


def shape_of(fields: Sequence[str], student: TinyConfig) -> "TinyShape":
    from retort.students.tiny.shape import TinyShape

    return TinyShape(fields=tuple(fields), **student.model_dump(exclude={"kind", "training"}))


def training_of(student: TinyConfig) -> "TinyTraining":
    from retort.students.tiny.shape import TinyTraining

    return TinyTraining(**student.training.model_dump())


def num_parameters_of(weights: Mapping[str, Any]) -> int:
    """Number of parameters of one student, including embeddings."""
    return sum(int(np.size(array)) for array in weights.values())


def _tried(fields: dict[str, Any], group: "Sequence[TrainedStudent]") -> TriedSetting:
    accuracies = [student.dev_accuracy for student in group]
    return TriedSetting(
        setting=fields,
        dev_accuracy=float(np.mean(accuracies)),
        dev_accuracies=tuple(accuracies),
        dev_loss=float(np.mean([student.dev_loss for student in group])),
        epochs=tuple(student.epoch for student in group),
    )
