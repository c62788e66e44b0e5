"""A student in memory, ready to answer."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import TypeAdapter

from retort.artifacts.students import TrainedStudent
from retort.config import Problem as ProblemConfig
from retort.data.fields import join_fields, split_fields
from retort.errors import ConfigError
from retort.models.device import Device, choose_device
from retort.problems import Problem, problem_for
from retort.problems.chat import Chat, conversation_text
from retort.records.result import StudentFingerprint
from retort.serving.addresses import FoundStudent, ModelName
from retort.students import loading
from retort.students.base import Outcome, Prediction, Predictor
from retort.students.tiny.exported import ExportedStudent

PRECISION_VARIABLE = "RETORT_PRECISION"
"""fp32 computes as exported graphs do; bf16 is faster where the processor has it, which auto, the default, looks up."""
THREADS_VARIABLE = "OMP_NUM_THREADS"
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

    def try_out(self) -> None:
        """Label one text. Raises whatever keeps the student from it, and pays for what is set up once."""
        text = "text"
        if isinstance(self.student, ExportedStudent):
            text = join_fields(dict.fromkeys(self.student.fields, text))
        elif isinstance(self.problem, Chat):
            text = conversation_text([{"role": "user", "content": text}])
        list(self.label([text]))


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

    Raises ConfigError if there is no such device or precision, DamagedArtifact if a file differs from what was stored.
    """
    about = StudentFingerprint(found.manifest.fingerprint)
    # Before any download. A tiny student runs on the CPU wherever it is.
    chosen = Device("cpu", "fp32", 1) if about.kind == "tiny" else _device(device)
    folder = TrainedStudent.open(found.store, found.store.ref(found.manifest)).model
    problem = problem_of(found)
    student = loading.load_student(folder, about.kind, about.max_length, problem)
    return LoadedStudent(found.name, problem, student, chosen)


def _device(wanted: str) -> Device:
    """The device, by default at the precision of the evaluation, with no more threads than the environment allows."""
    precision = os.environ.get(PRECISION_VARIABLE, "auto")
    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"{PRECISION_VARIABLE} = '{precision}': no precision; allowed: auto, bf16, fp32")
    chosen = choose_device(wanted, precision, 1)
    # A container sees all of its node's cores, whatever its share of them is.
    share = os.environ.get(THREADS_VARIABLE, "")
    if share.isdecimal() and 0 < int(share) < chosen.threads:
        chosen = replace(chosen, threads=int(share))
        torch.set_num_threads(chosen.threads)
    return chosen
