"""Class probabilities from a teacher's verbalizer scores, and measures of their calibration.

A score is the natural log-probability that the teacher writes a verbalizer. Over all verbalizers, these probabilities
sum to less than 1, because the teacher could write something else. Temperature scaling (Guo et al. 2017, "On
Calibration of Modern Neural Networks") divides the scores by one number, the *calibration temperature*, fitted on
gold-labeled rows: the most probable class stays the same, and its confidence becomes right on average.
"""

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.problems.base import Floats

Indices = NDArray[np.int64]

CALIBRATION_TEMPERATURES = (0.05, 20.0)
"""Bounds of the fit, reached when the optimum is infinitely sharp (all rows right) or flat (all wrong)."""

_TINY = np.finfo(np.float64).tiny

_FLOOR = -1e4
"""Minimum score, so that one verbalizer of probability 0 does not make every likelihood infinite."""


def label_probabilities(log_scores: Floats, calibration_temperature: float = 1.0) -> Floats:
    """Scores `(n, classes)`, natural log-probabilities -> probabilities `(n, classes)`, each row summing to 1."""
    probabilities: Floats = np.exp(_log_probabilities(log_scores, calibration_temperature))
    return probabilities


def outside_mass(log_scores: Floats) -> Floats:
    """The probability that the teacher writes none of the verbalizers: `(n, classes)` -> `(n,)` in [0, 1]."""
    mass: Floats = np.clip(1.0 - np.exp(log_scores).sum(axis=1), 0.0, 1.0)
    return mass


def fit_temperature(log_scores: Floats, gold_indices: Indices) -> float:
    """The calibration temperature with the lowest negative log-likelihood, within `CALIBRATION_TEMPERATURES`; 1 if all
    are equally good. `log_scores` is `(n, classes)`, `gold_indices` `(n,)`.

    The negative log-likelihood is convex in the inverse temperature, so a bounded search finds its one minimum.
    Raises DataError if there are no rows.
    """
    from scipy.optimize import minimize_scalar

    _check_rows(gold_indices)

    def loss(logarithm: float) -> float:
        return _mean_loss(_log_probabilities(log_scores, float(np.exp(logarithm))), gold_indices)

    low, high = np.log(CALIBRATION_TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # 1 comes first, so that it wins ties; the search itself never quite reaches a bound.
    return float(np.exp(min((0.0, low, high, float(found.x)), key=loss)))


def negative_log_likelihood(probabilities: Floats, gold_indices: Indices) -> float:
    """Mean over rows of -ln p(gold class), in nats, >= 0. Raises DataError if there are no rows."""
    return Calibration.of(probabilities, gold_indices).negative_log_likelihood


def brier_score(probabilities: Floats, gold_indices: Indices) -> float:
    """Mean over rows of the squared distance to the one-hot gold label, in [0, 2] (Brier 1950). Raises DataError if
    there are no rows."""
    return Calibration.of(probabilities, gold_indices).brier_score


def expected_calibration_error(probabilities: Floats, gold_indices: Indices, bins: int = 10) -> float:
    """Expected calibration error, in [0, 1] (Guo et al. 2017, equation 3).

    Rows are grouped by confidence, the probability of their most probable class, into equal-width bins
    `((m - 1) / M, m / M]`; the error is the mean over rows of their bin's |accuracy - mean confidence|. Raises
    DataError if there are no rows.
    """
    return Calibration.of(probabilities, gold_indices).expected_error(bins)


class Calibration:
    """These measures of rows that are added in batches and not kept: they take 25 bytes a row."""

    def __init__(self) -> None:
        self._losses, self._errors, self._confidences = array("d"), array("d"), array("d")
        self._right = bytearray()

    @classmethod
    def of(cls, probabilities: Floats, gold_indices: Indices) -> "Calibration":
        whole = cls()
        whole.add(probabilities, gold_indices)
        return whole

    def add(self, probabilities: Floats, gold_indices: Indices) -> None:
        """Rows `(n, classes)` with their gold classes `(n,)`."""
        rows = np.arange(len(gold_indices))
        errors = probabilities.copy()
        errors[rows, gold_indices] -= 1.0
        self._losses.frombytes((-np.log(np.maximum(probabilities, _TINY))[rows, gold_indices]).tobytes())
        self._errors.frombytes((errors**2).sum(axis=1).tobytes())
        self._confidences.frombytes(probabilities.max(axis=1).tobytes())
        self._right += (probabilities.argmax(axis=1) == gold_indices).tobytes()

    @property
    def negative_log_likelihood(self) -> float:
        return float(self._numbers(self._losses).mean())

    @property
    def brier_score(self) -> float:
        return float(self._numbers(self._errors).mean())

    def expected_error(self, bins: int = 10) -> float:
        confidences = self._numbers(self._confidences)
        excess = np.frombuffer(self._right, dtype=np.bool_) - confidences
        numbers = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
        return float(np.abs(np.bincount(numbers, weights=excess, minlength=bins)).sum() / len(confidences))

    @staticmethod
    def _numbers(values: "array[float]") -> Floats:
        found: Floats = np.frombuffer(values, dtype=np.float64)
        _check_rows(found)
        return found


def _log_probabilities(log_scores: Floats, calibration_temperature: float) -> Floats:
    scaled = np.maximum(log_scores, _FLOOR) / calibration_temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    logarithms: Floats = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return logarithms


def _mean_loss(log_probabilities: Floats, gold_indices: Indices) -> float:
    return float(-log_probabilities[np.arange(len(gold_indices)), gold_indices].mean())


def _check_rows(rows: NDArray[Any]) -> None:
    if not len(rows):
        raise DataError("there are no gold-labeled rows to calibrate on")
