"""A student that is loaded and ready to predict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from retort.config import Problem as ProblemConfig
from retort.models.device import Device, choose_device
from retort.problems import Problem, problem_for
from retort.serving.addresses import FoundStudent, ModelName
from retort.serving.tiny import LoadedTiny, load_tiny
from retort.steps.train_student import MODEL
from retort.students import loading as opening
from retort.students.base import Outcome, Prediction, Student

_PROBLEM: TypeAdapter[ProblemConfig] = TypeAdapter(ProblemConfig)


@dataclass(frozen=True, slots=True)
class LoadedStudent:
    name: ModelName
    problem: Problem
    student: Student
    device: Device

    def label(self, texts: Sequence[str]) -> Iterator[Prediction]:
        """Predictions in the order of `texts`."""
        outcomes = self.student.predict(texts, device=self.device, total=len(texts))
        return (_answered(self.problem, text, outcome) for text, outcome in zip(texts, outcomes, strict=True))

    def fault(self, text: str) -> str | None:
        """Why this student in particular cannot read the text; this kind reads any, so None."""
        return None


def _answered(problem: Problem, text: str, outcome: Outcome) -> Prediction:
    """The outcome as a prediction. If the student wrote something that is not a label, the confidence is 0.

    The label is then what it wrote, if the problem has no classes, and otherwise the most likely label under uniform
    probabilities.
    """
    if isinstance(outcome, Prediction):
        return outcome
    num_units, num_classes = len(problem.sites(len(problem.words(text)))), len(problem.classes)
    if not num_classes:
        return Prediction(outcome.raw, 0.0, np.empty((0, 0), dtype=np.float32))
    even = np.full((num_units, num_classes), 1 / num_classes, dtype=np.float32)
    return Prediction(problem.decide(text, even.astype(np.float64))[0], 0.0, even)


def problem_of(found: FoundStudent) -> Problem:
    return problem_for(_PROBLEM.validate_python(found.manifest.made_of["params"]["problem"]))


def load_student(found: FoundStudent, device: str = "auto") -> LoadedStudent | LoadedTiny:
    """Fetch, verify and load the student. `device` is auto, cpu or cuda.

    Raises ConfigError if there is no such device, DamagedArtifact if a file differs from what was stored.
    """
    if found.manifest.made_of["verb"] == "export-student":
        return load_tiny(found)
    chosen = choose_device(device, "auto", 1)  # fails before any download; same precision as in the evaluation
    params = found.manifest.made_of["params"]
    folder = found.store.fetch(found.store.ref(found.manifest)) / MODEL
    problem = problem_of(found)
    student = opening.load_student(folder, params["student"], params["training"]["max_length"], problem)
    return LoadedStudent(found.name, problem, student, chosen)
