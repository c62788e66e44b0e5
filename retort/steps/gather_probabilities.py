"""`gather-probabilities`: joins a teacher's probabilities to the rows by `example_id`, and to the classes by name.

Labels are in the order of the rows, recorded probabilities in any. The result has the same form for every teacher: a
fine-tuned one trained on folds (each part labeled the rows that it was not trained on), an LLM, or recorded
probabilities.
"""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from retort.artifacts.examples import Examples
from retort.artifacts.probabilities import PREDICTIONS, Probabilities
from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import ClassificationConfig
from retort.data.probabilities import beside, by_name, recorded_probabilities
from retort.errors import StageFailed
from retort.io.parquet import PROBABILITIES, aligned, count_rows, write_rows
from retort.problems import problem_for
from retort.problems.base import Floats
from retort.records.base import ArtifactRef
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

Values = Floats | list[float]
From = Annotated[Literal["labels", "file"], Field(serialization_alias="from")]


class GatherProbabilities(Step):
    """Join a teacher's probabilities to the rows by id, and to the classes by name."""

    kind = "gather-probabilities"
    version = 1
    artifact = Probabilities

    problem: ClassificationConfig
    rows: ArtifactRef
    needed: Runtime[bool] = True
    """Whether the teacher must have probabilities for at least one row."""

    def run(self, context: StepContext) -> StepOutput:
        """Rows without probabilities are left out and counted."""
        examples = Examples.open(context.store, self.rows)
        found, total = self.found(context, examples, problem_for(self.problem).classes), count_rows(examples.path)
        rows = ({"example_id": example_id, "seed": 0, "probabilities": values} for example_id, values in found)
        count = write_rows(context.folder / PREDICTIONS, PROBABILITIES, rows)
        if not count and self.needed:
            raise StageFailed(f"{self.name}: the teacher has no probabilities for any of the {total} rows")
        return StepOutput(rows=count, counts={"missing": total - count}, metrics={"known_share": count / total})

    @abstractmethod
    def found(self, context: StepContext, examples: Examples, classes: tuple[str, ...]) -> Iterator[tuple[str, Values]]:
        """Yield (example_id, probabilities of `classes`) of the examples that have some, in their order."""


class GatherLabels(GatherProbabilities):
    """Join the probabilities that came with pseudolabels."""

    taken_from: From = "labels"
    labels: tuple[ArtifactRef, ...]

    def found(self, context: StepContext, examples: Examples, classes: tuple[str, ...]) -> Iterator[tuple[str, Values]]:
        """Raises StageFailed if two labelers have the same row: one of them was trained on it."""
        opened = [Pseudolabels.open(context.store, ref) for ref in self.labels]
        named = [tuple(labels.manifest.fingerprint["params"]["problem"]["labels"]) for labels in opened]
        columns, used = ["example_id", "probabilities"], 0
        for row, labels in aligned(examples.rows(columns[:1]), *(one.rows(columns) for one in opened)):
            known = [(names, label["probabilities"]) for names, label in zip(named, labels, strict=True) if label]
            if len(known) > 1:
                raise StageFailed(f"{self.name}: two teachers have probabilities for '{row['example_id']}'")
            used += len(known)
            for names, values in known:
                if values is not None:
                    yield row["example_id"], by_name(np.asarray(values, dtype=np.float64), names, classes)
        if used != sum(count_rows(one.path) for one in opened):
            raise StageFailed(f"{self.name}: the teachers' labels are not those of the rows, in their order")


class GatherRecorded(GatherProbabilities):
    """Join the probabilities in a recorded file."""

    taken_from: From = "file"
    content: str
    """Fingerprint of the file."""
    file: Runtime[str]
    endpoint_url: Runtime[str | None]

    def found(self, context: StepContext, examples: Examples, classes: tuple[str, ...]) -> Iterator[tuple[str, Values]]:
        with recorded_probabilities(self.file, classes, self.endpoint_url) as file:
            lists = chain.from_iterable(part.to_pylist() for part in beside(examples.path, file))
            for row, values in zip(examples.rows(["example_id"]), lists, strict=True):
                if values is not None:
                    yield row["example_id"], values
