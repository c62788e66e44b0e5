"""A student in memory, ready to answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from retort.config import Problem as ProblemConfig
from retort.problems import Problem, problem_for
from retort.serving.addresses import FoundStudent, ModelName
from retort.stages.student import MODEL
from retort.students.device import Device, choose_device
from retort.students.encoder import Encoder, load_encoder
from retort.students.prediction import Prediction, predict

_PROBLEM: TypeAdapter[ProblemConfig] = TypeAdapter(ProblemConfig)


@dataclass(frozen=True, slots=True)
class LoadedStudent:
    name: ModelName
    problem: Problem
    encoder: Encoder
    device: Device

    def label(self, texts: Sequence[str]) -> Iterator[Prediction]:
        """Predictions in the order of `texts`."""
        return predict(self.encoder, self.problem, texts, device=self.device, total=len(texts))


def problem_of(found: FoundStudent) -> Problem:
    return problem_for(_PROBLEM.validate_python(found.manifest.made_of["params"]["problem"]))


def load_student(found: FoundStudent, device: str = "auto") -> LoadedStudent:
    """Fetch, verify and load. `device` is auto, cpu or cuda.

    Raises ConfigError where there is no such device, DamagedArtifact where a file is not what was stored.
    """
    chosen = choose_device(device, "auto", 1)  # before a download; the same precision as in the evaluation
    params = found.manifest.made_of["params"]
    folder = found.store.fetch(found.store.ref(found.manifest)) / MODEL
    encoder = load_encoder(folder, params["student"], params["training"]["max_length"])
    return LoadedStudent(found.name, problem_of(found), encoder, chosen)
