"""Creating and loading students of any kind."""

from pathlib import Path

from retort.config import CausalConfig, Seq2SeqConfig, SequenceClassificationConfig, TokenClassificationConfig
from retort.config import Student as StudentConfig
from retort.errors import ConfigError, DamagedArtifact
from retort.models.weights import Weights, check_inert, loading_fault
from retort.problems import Problem
from retort.students.base import Predictor, Student
from retort.students.classifier import Classifier
from retort.students.encoder import LOADING_ERRORS, load_encoder, new_encoder
from retort.students.generative import load_generative_student, new_generative_student
from retort.students.tiny.exported import ExportedStudent


def new_student(config: StudentConfig, weights: Weights, *, pretrained: bool, problem: Problem) -> Student:
    """An untrained student, with the given weights if `pretrained`, else random ones. Seed torch first.

    Raises ConfigError if the weights cannot be loaded for this kind of student.
    """
    match config:
        case TokenClassificationConfig() | SequenceClassificationConfig():
            length = config.training.max_length
            encoder = new_encoder(config.kind, weights, pretrained=pretrained, problem=problem, max_length=length)
            return Classifier(encoder, problem)
        case Seq2SeqConfig() | CausalConfig():
            return new_generative_student(config, weights, pretrained=pretrained, problem=problem)


def load_student(folder: Path, kind: str, max_length: int, problem: Problem) -> Predictor:
    """A trained student, from its artifact's files. Where the problem's classes have changed since, they are found by
    their names, and those that the student does not know get a probability of 0.

    Raises DamagedArtifact for files that no student wrote.
    """
    if kind == "tiny":
        return ExportedStudent(folder, problem)
    try:
        check_inert(folder)
        if kind in ("seq2seq", "causal"):
            return load_generative_student(folder, max_length, problem)
        return Classifier(load_encoder(folder, kind, max_length, problem), problem)
    except (ConfigError, *LOADING_ERRORS) as error:
        raise DamagedArtifact(f"'{folder}': this student cannot be loaded: {loading_fault(error)}") from error
