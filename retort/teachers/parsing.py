"""Parses the completions of one row into its label."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from retort.config import Metric
from retort.config.teachers import LlmTeacherConfig
from retort.metrics.calibration import label_probabilities, outside_mass
from retort.problems import Problem
from retort.problems.base import Scale
from retort.records.base import Label, ParseFailure
from retort.teachers.ledger import Entry
from retort.teachers.rationales import parse_reasoned
from retort.teachers.salvage import Reading, parse_completion
from retort.teachers.top_logprobs import TopLogprobs
from retort.teachers.voting import averaged, majority, minimum_risk

MISSING = ParseFailure("missing", "The teacher gave no answer.", "")


class Labeled(NamedTuple):
    label: Label
    confidence: float
    """Of a hard label from one completion: the share of the text that the completion accounts for, see `Reading`;
    otherwise the share of agreeing samples, or the class's probability."""
    probabilities: tuple[float, ...] | None = None
    """Class probabilities in the problem's order; None for hard labels."""
    top: TopLogprobs | None = None
    """Top log-probabilities of the raw completion, if they were requested."""
    rationale: str | None = None
    """Why the label is what it is, if that was requested."""


Parsed = Labeled | ParseFailure


@dataclass
class CompletionParser:
    """Parses a teacher's completions and keeps counts for reports."""

    problem: Problem
    metric: Metric
    """The metric that minimum-risk selection maximizes."""
    teacher: LlmTeacherConfig
    calibration_temperature: float = 1.0
    """Divides the log-probabilities of soft labels."""
    counts: Counter[str] = field(default_factory=Counter)
    """`salvaged`: completions whose label had to be extracted or repaired; `cut`: of these, those whose label accounts
    for more words than the completion."""
    outside_masses: list[float] = field(default_factory=list)
    """For each soft-labeled row, the probability mass outside the labels."""

    def parse(self, text: str, entries: Sequence[Entry | None]) -> Parsed:
        """The row's label, or why it has none. `entries` are the row's samples; None for one that never arrived."""
        present = [entry for entry in entries if entry is not None]
        if not present:
            return MISSING
        if self.teacher.labels == "soft":
            return self._soft(text, present[0])
        read = [self._read(text, entry) for entry in present]
        readings, rationales = [reading for reading, _ in read], [rationale for _, rationale in read]
        labels = [None if isinstance(one.outcome, ParseFailure) else one.outcome for one in readings]
        if not any(label is not None for label in labels):
            return next(one.outcome for one in readings if isinstance(one.outcome, ParseFailure))
        if len(entries) == 1:
            return Labeled(str(labels[0]), readings[0].covered, top=present[0].top, rationale=rationales[0])
        chosen = self._chosen(labels)
        assert chosen is not None, "one of the samples has a label"
        agreeing = (rationale for label, rationale in zip(labels, rationales, strict=True) if label == chosen[0])
        return Labeled(*chosen, rationale=next(agreeing, None))

    def _chosen(self, labels: Sequence[Label | None]) -> tuple[Label, float] | None:
        if isinstance(self.problem, Scale):
            return averaged(labels, self.problem)
        by_risk = self.teacher.sampling.choose == "minimum-risk"
        return minimum_risk(labels, self.problem, self.metric) if by_risk else majority(labels)

    def _read(self, text: str, entry: Entry) -> tuple[Reading, str | None]:
        if self.teacher.rationales:
            reading, rationale = parse_reasoned(self.problem, text, entry.text, entry.finish_reason)
        else:
            reading, rationale = parse_completion(self.problem, text, entry.text, entry.finish_reason), None
        self.counts.update(reading.counted)
        return reading, rationale

    def _soft(self, text: str, entry: Entry) -> Parsed:
        if len(entry.scores) != len(self.problem.classes):
            return ParseFailure("no-scores", "The teacher gave no probabilities for the classes.", entry.text)
        scores = np.array([entry.scores], dtype=np.float64)
        self.outside_masses.append(float(outside_mass(scores)[0]))
        probabilities = label_probabilities(scores, self.calibration_temperature)
        label, confidence = self.problem.decide(text, probabilities)
        return Labeled(label, confidence, tuple(probabilities[0].tolist()))
