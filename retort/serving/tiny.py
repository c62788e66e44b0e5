"""A tiny student in memory, ready to answer: the exported folder, by onnxruntime."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from retort.config import Problem as ProblemConfig
from retort.data.fields import split_fields
from retort.models.device import Device
from retort.problems import Problem, problem_for
from retort.serving.addresses import FoundStudent, ModelName
from retort.steps.export_student import ONNX
from retort.steps.train_grid import fields_of
from retort.students.base import Prediction
from retort.students.tiny.scorer import BATCH_ROWS

if TYPE_CHECKING:
    from retort.students.tiny.scorer import Scorer

_PROBLEM: TypeAdapter[ProblemConfig] = TypeAdapter(ProblemConfig)


@dataclass(frozen=True, slots=True)
class LoadedTiny:
    name: ModelName
    problem: Problem
    scorer: "Scorer"
    fields: tuple[str, ...]
    device: Device

    def label(self, texts: Sequence[str]) -> Iterator[Prediction]:
        """Predictions in the order of `texts`, each of them fields as `join_fields` writes them."""
        for start in range(0, len(texts), BATCH_ROWS):
            batch = texts[start : start + BATCH_ROWS]
            for row in self.scorer.probabilities([fields_of(text, self.fields) for text in batch]):
                label, confidence = self.problem.decide("", row[None].astype(np.float64))
                yield Prediction(label, confidence, row[None])

    def fault(self, text: str) -> str | None:
        """Predicate of a sentence about a text that does not hold the fields."""
        wanted = ", ".join(self.fields)
        try:
            found = split_fields(text)
        except ValueError:
            return f"must hold a line `name: value` for each of: {wanted}"
        missing = [name for name in self.fields if name not in found]
        return f"has no line for '{missing[0]}'; needed: {wanted}" if missing else None


def load_tiny(found: FoundStudent) -> LoadedTiny:
    """Raises DamagedArtifact where a file is not what was stored."""
    from retort.students.tiny.scorer import Scorer

    params = found.manifest.made_of["params"]
    folder = found.store.fetch(found.store.ref(found.manifest)) / ONNX
    problem = problem_for(_PROBLEM.validate_python(params["problem"]))
    return LoadedTiny(found.name, problem, Scorer(folder), tuple(params["fields"]), Device("cpu", "fp32", 1))
