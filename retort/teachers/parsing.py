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
from retort.records.base import Label, ParseFailure
from retort.teachers.ledger import Entry
from retort.teachers.salvage import parse_completion
from retort.teachers.top_logprobs import TopLogprobs
from retort.teachers.voting import majority, minimum_risk

MISSING = ParseFailure("missing", "The teacher gave no answer.", "")


class Labeled(NamedTuple):
    label: Label
    confidence: float
    """1.0 for a hard label from one completion; otherwise the share of agreeing samples, or the class's probability."""
    probabilities: tuple[float, ...] | None = None
    """Class probabilities in the problem's order; None for hard labels."""
    top: TopLogprobs | None = None
    """Top log-probabilities of the raw completion, if they were requested."""


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
    """`salvaged`: completions whose label had to be extracted from surrounding text."""
    outside_masses: list[float] = field(default_factory=list)
    """For each soft-labeled row, the probability mass outside the labels."""

    def parse(self, text: str, entries: Sequence[Entry | None]) -> Parsed:
        """The row's label, or why it has none. `entries` are the row's samples; None for one that never arrived."""
        present = [entry for entry in entries if entry is not None]
        if not present:
            return MISSING
        if self.teacher.labels == "soft":
            return self._soft(text, present[0])
        outcomes = [self._hard(text, entry) for entry in present]
        labels = [None if isinstance(outcome, ParseFailure) else outcome for outcome in outcomes]
        if not any(label is not None for label in labels):
            return next(outcome for outcome in outcomes if isinstance(outcome, ParseFailure))
        if len(entries) == 1:
            return Labeled(str(labels[0]), 1.0, top=present[0].top)
        by_risk = self.teacher.sampling.choose == "minimum-risk"
        chosen = minimum_risk(labels, self.problem, self.metric) if by_risk else majority(labels)
        assert chosen is not None, "one of the samples has a label"
        return Labeled(*chosen)

    def _hard(self, text: str, entry: Entry) -> Label | ParseFailure:
        outcome, salvaged = parse_completion(self.problem, text, entry.text)
        self.counts["salvaged"] += salvaged
        if isinstance(outcome, ParseFailure) and entry.finish_reason == "length":
            return ParseFailure(
                "cut-short", f"The completion reached sampling.max_tokens: {outcome.detail}", entry.text
            )
        return outcome

    def _soft(self, text: str, entry: Entry) -> Parsed:
        if len(entry.scores) != len(self.problem.classes):
            return ParseFailure("no-scores", "The teacher gave no probabilities for the classes.", entry.text)
        scores = np.array([entry.scores], dtype=np.float64)
        self.outside_masses.append(float(outside_mass(scores)[0]))
        probabilities = label_probabilities(scores, self.calibration_temperature)
        label, confidence = self.problem.decide(text, probabilities)
        return Labeled(label, confidence, tuple(probabilities[0].tolist()))
