"""`gather-probabilities`: joins a teacher's probabilities to the rows by `example_id`, and to the classes by name.

The result has the same form for every teacher: a fine-tuned one trained on folds (each part labeled the rows that it
was not trained on), an LLM, or recorded probabilities.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from retort.artifacts.examples import Examples
from retort.artifacts.probabilities import PREDICTIONS, Probabilities
from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import ClassificationConfig
from retort.data.probabilities import by_name, read_probabilities
from retort.errors import StageFailed
from retort.io.parquet import PROBABILITIES, write_rows
from retort.problems import problem_for
from retort.problems.base import Floats
from retort.records.base import ArtifactRef
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

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
        found = dict(self.found(context, problem_for(self.problem).classes))
        ids = [row["example_id"] for row in Examples.open(context.store, self.rows).rows(["example_id"])]
        rows = ({"example_id": one, "seed": 0, "probabilities": found[one]} for one in ids if one in found)
        count = write_rows(context.folder / PREDICTIONS, PROBABILITIES, rows)
        if not count and self.needed:
            raise StageFailed(f"{self.name}: the teacher has no probabilities for any of the {len(ids)} rows")
        return StepOutput(rows=count, counts={"missing": len(ids) - count}, metrics={"known_share": count / len(ids)})

    @abstractmethod
    def found(self, context: StepContext, classes: tuple[str, ...]) -> Iterator[tuple[str, Floats]]:
        """Yield (example_id, probabilities of `classes`), in any order."""


class GatherLabels(GatherProbabilities):
    """Join the probabilities that came with pseudolabels."""

    taken_from: From = "labels"
    labels: tuple[ArtifactRef, ...]

    def found(self, context: StepContext, classes: tuple[str, ...]) -> Iterator[tuple[str, Floats]]:
        """Raises StageFailed if two labelers have the same row: one of them was trained on it."""
        seen: set[str] = set()
        for ref in self.labels:
            labels = Pseudolabels.open(context.store, ref)
            known = tuple(labels.manifest.fingerprint["params"]["problem"]["labels"])
            for row in labels.rows(["example_id", "probabilities"]):
                if row["example_id"] in seen:
                    raise StageFailed(f"{self.name}: two teachers have probabilities for '{row['example_id']}'")
                seen.add(row["example_id"])
                if row["probabilities"] is not None:
                    values = np.asarray(row["probabilities"], dtype=np.float64)
                    yield row["example_id"], by_name(values, known, classes)


class GatherRecorded(GatherProbabilities):
    """Join the probabilities in a recorded file."""

    taken_from: From = "file"
    content: str
    """Fingerprint of the file."""
    file: Runtime[str]
    endpoint_url: Runtime[str | None]

    def found(self, context: StepContext, classes: tuple[str, ...]) -> Iterator[tuple[str, Floats]]:
        yield from read_probabilities(self.file, classes, self.endpoint_url)
