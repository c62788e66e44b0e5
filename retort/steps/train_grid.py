"""`train-tiny`: trains every setting of an arm side by side, from the same seeds, and keeps the best on the dev rows.

An arm is a loss. All arms have the same rows, vocabulary, initial weights and order of batches.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retort.artifacts.examples import Examples
from retort.artifacts.grids import Grid, TriedSetting, write_grid
from retort.artifacts.probabilities import Probabilities
from retort.config import ClassificationConfig
from retort.config.soft_label import TinyConfig
from retort.data.fields import fields_of
from retort.errors import StageFailed
from retort.problems import problem_for
from retort.problems.base import Floats
from retort.records.base import ArtifactRef
from retort.steps.base import STUDENT, Resources, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.tiny.shape import TinyRows, TinyShape, TinyTraining, TrainedStudent
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
        from retort.students.tiny.shape import TinyRows
        from retort.students.tiny.vocabulary import Vocabulary

        names = tuple(self.fields)
        examples = Examples.open(context.store, self.train).gold()
        dev = Examples.open(context.store, self.dev).gold()
        ids = [example.example_id for example in examples]
        fields = [fields_of(example.text, names) for example in examples]
        gold = [_index(classes, example.label) for example in examples]
        if self.pool:
            pool = list(Examples.open(context.store, self.pool).rows())
            fields += [fields_of(row["text"], names) for row in pool]
            gold += [-1] * len(pool)
            ids += [row["example_id"] for row in pool]
        vocabulary = Vocabulary.fit(fields, shape_of(self.fields, self.student))
        probabilities = self._probabilities(context, classes, ids, np.array(gold))
        train = TinyRows(vocabulary.encode(fields), np.array(gold), probabilities)
        dev_texts = vocabulary.encode([fields_of(example.text, names) for example in dev])
        return train, TinyRows(dev_texts, np.array([_index(classes, one.label) for one in dev])), vocabulary

    def _probabilities(
        self, context: StepContext, classes: tuple[str, ...], ids: list[str], gold: Any
    ) -> Floats | None:
        """`(rows, classes)` in the order of `ids`: the teacher's (NaN where it has none), or smoothed gold labels."""
        from retort.students.tiny.baselines import smoothed

        if self.label_smoothing is not None:
            targets: Floats = smoothed(gold, len(classes), self.label_smoothing)
            return targets
        if self.probabilities is None:
            return None
        (found,) = Probabilities.open(context.store, self.probabilities).aligned(ids, classes)
        if self.pool_probabilities:
            (for_pool,) = Probabilities.open(context.store, self.pool_probabilities).aligned(ids, classes)
            found = np.where(np.isnan(found), for_pool, found)
        if np.isnan(found).all():
            raise StageFailed(f"{self.name}: the teacher has no probabilities for any training row")
        joined: Floats = found
        return joined


def shape_of(fields: Sequence[str], student: TinyConfig) -> "TinyShape":
    from retort.students.tiny.shape import TinyShape

    return TinyShape(fields=tuple(fields), **student.model_dump(exclude={"kind", "training"}))


def training_of(student: TinyConfig) -> "TinyTraining":
    from retort.students.tiny.shape import TinyTraining

    return TinyTraining(**student.training.model_dump())


def num_parameters_of(weights: Mapping[str, Any]) -> int:
    """Number of parameters of one student, including embeddings."""
    return sum(int(np.size(array)) for array in weights.values())


def _index(classes: tuple[str, ...], label: str | None) -> int:
    return -1 if label is None else classes.index(label)


def _tried(fields: dict[str, Any], group: "Sequence[TrainedStudent]") -> TriedSetting:
    accuracies = [student.dev_accuracy for student in group]
    return TriedSetting(
        setting=fields,
        dev_accuracy=float(np.mean(accuracies)),
        dev_accuracies=tuple(accuracies),
        dev_loss=float(np.mean([student.dev_loss for student in group])),
        epochs=tuple(student.epoch for student in group),
    )
