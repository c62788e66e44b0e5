"""How good a student is in its parts: errors by name, calibration, slices of the test rows."""

from collections.abc import Sequence

import numpy as np

from retort.records.base import Record, Score

BINS = 10
"""Of a reliability diagram, over confidences from 0 to 1."""


class NameErrors(Record):
    """Errors on one class, intent or slot type."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """How often it occurs in the gold labels."""
    predicted: int


class Confusion(Record):
    gold: str
    predicted: str
    count: int
    example: str
    """A text in which it happened."""


class HeatMap(Record):
    """What was said (columns) for what is right (rows). With many names, those that are mistaken least share a row and
    a column."""

    gold: tuple[str, ...]
    predicted: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """One tuple per gold name."""


class ErrorTable(Record):
    """Errors of the final student on the test rows."""

    title: str
    names: tuple[NameErrors, ...]
    confusions: tuple[Confusion, ...]
    """Most frequent first."""
    matrix: tuple[tuple[int, ...], ...] | None = None
    """Gold by predicted, in the order of `names`; the last column counts rows without a prediction. None for spans, and
    if there are too many classes."""
    heat: HeatMap | None = None
    """For the picture; None if there is nothing to show."""


class Bin(Record):
    """Rows of similar confidence."""

    rows: int
    confidence: float
    """Mean, in [0, 1]."""
    right: float
    """Share of rows whose whole label is right, in [0, 1]."""


class Reliability(Record):
    """How far a system's confidence is the probability that it is right."""

    name: str
    bins: tuple[Bin, ...]
    """Without empty ones, in the order of confidence."""

    @property
    def error(self) -> float:
        """The expected calibration error, in [0, 1] (Guo et al. 2017, equation 3)."""
        rows = sum(one.rows for one in self.bins)
        return sum(one.rows * abs(one.right - one.confidence) for one in self.bins) / rows


class Slice(Record):
    """A part of the test rows, and the score on it."""

    name: str
    score: Score


def reliability(name: str, confidences: Sequence[float | None], right: Sequence[bool]) -> Reliability | None:
    """Rows by confidence, in bins `((m - 1) / 10, m / 10]`; rows without a confidence are left out. None if the system
    has none, or the same one for all rows."""
    pairs = [(one, hit) for one, hit in zip(confidences, right, strict=True) if one is not None]
    if len({one for one, _ in pairs}) < 2:
        return None
    values, hits = np.array([one for one, _ in pairs]), np.array([hit for _, hit in pairs], dtype=np.float64)
    numbers = np.clip(np.ceil(values * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins = [
        Bin(rows=int(mine.sum()), confidence=float(values[mine].mean()), right=float(hits[mine].mean()))
        for number in range(BINS)
        if (mine := numbers == number).any()
    ]
    return Reliability(name=name, bins=tuple(bins))
