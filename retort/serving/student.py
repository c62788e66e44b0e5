"""A student in memory, ready to answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from retort.artifacts.students import TrainedStudent
from retort.config import Problem as ProblemConfig
from retort.data.fields import split_fields
from retort.models.device import Device, choose_device
from retort.problems import Problem, problem_for
from retort.records.result import StudentFingerprint
from retort.serving.addresses import FoundStudent, ModelName
from retort.students import loading
from retort.students.base import Outcome, Prediction, Predictor
from retort.students.tiny.exported import ExportedStudent

_PROBLEM: TypeAdapter[ProblemConfig] = TypeAdapter(ProblemConfig)


@dataclass(frozen=True, slots=True)
class LoadedStudent:
    name: ModelName
    problem: Problem
    student: Predictor
    device: Device

    def label(self, texts: Sequence[str]) -> Iterator[Prediction]:
        """Predictions in the order of `texts`."""
        outcomes = self.student.predict(texts, device=self.device, total=len(texts))
        return (answered(self.problem, text, outcome) for text, outcome in zip(texts, outcomes, strict=True))

    def fault(self, text: str) -> str | None:
        """Predicate of a sentence about a text that this student cannot read, beside what no student can: a tiny one
        needs its fields."""
        if not isinstance(self.student, ExportedStudent):
            return None
        names = self.student.fields
        wanted = ", ".join(names)
        try:
            found = split_fields(text)
        except ValueError:
            return f"must hold a line `name: value` for each of: {wanted}"
        missing = [name for name in names if name not in found]
        return f"has no line for '{missing[0]}'; needed: {wanted}" if missing else None


def answered(problem: Problem, text: str, outcome: Outcome) -> Prediction:
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
    return problem_for(_PROBLEM.validate_python(found.manifest.fingerprint["params"]["problem"]))


def load_student(found: FoundStudent, device: str = "auto") -> LoadedStudent:
    """Fetch, verify and load the student. `device` is auto, cpu or cuda.

    Raises ConfigError if there is no such device, DamagedArtifact if a file differs from what was stored.
    """
    about = StudentFingerprint(found.manifest.fingerprint)
    # Before any download; the same precision as in the evaluation. A tiny student runs on the CPU wherever it is.
    chosen = Device("cpu", "fp32", 1) if about.kind == "tiny" else choose_device(device, "auto", 1)
    folder = TrainedStudent.open(found.store, found.store.ref(found.manifest)).model
    problem = problem_of(found)
    student = loading.load_student(folder, about.kind, about.max_length, problem)
    return LoadedStudent(found.name, problem, student, chosen)
