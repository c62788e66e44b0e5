"""Regression: a number for each text, on a scale from `low` to `high`; with steps it is ordinal regression.

The label is the number in decimal digits. The only unit is the whole text. Its classes are points of the scale: the
steps themselves if they are few, else 11 points at equal distances. A label stands for a distribution over them: all at
one point, or shared by the two points beside it so that the mean is the label. Students learn it by cross-entropy and
predict the mean, which generalizes better than a head for one number that minimizes the squared error (Farebrother et
al. 2024, arXiv 2403.03950), and it gives soft labels, whose spread says how sure the student is.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np

from retort.config import ColumnsConfig, Metric, RegressionConfig
from retort.errors import ConfigError, DataError
from retort.problems.base import Floats, gold_text, listed, ratio
from retort.problems.choice import Choice
from retort.records.base import Label, ParseFailure

POINTS = 11
DIGITS = 6
"""Digits after the point of a label without steps."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_SNAP = Decimal("1e-6")
"""A number so near to a step, in steps, is that step: a float32 in a Parquet file is 0.10000000149."""
_NO_SPREAD = 1e-12
"""A variance below this, on a scale from -1 to 1, is the rounding error of sums."""


class Regression(Choice):
    """A scale. Its ends and steps are decimals: 0.1 is a tenth, not the nearest binary number."""

    def __init__(self, config: RegressionConfig) -> None:
        self._low, self._high = Decimal(str(config.low)), Decimal(str(config.high))
        self._unit, self._has_steps = config.unit, config.step is not None
        self._average = config.average
        written = self._all_written()
        self._choices = tuple(self._text(number) for number in written)
        self._points = np.array(
            [float(number) for number in written]
            if config.has_class_for_each
            else np.linspace(config.low, config.high, POINTS)
        )
        self._classes = self._choices if config.has_class_for_each else tuple(f"{point:g}" for point in self._points)

    def _all_written(self) -> list[Decimal]:
        if self._has_steps:
            steps = int((self._high - self._low) / self._unit)
            return [self._low + at * self._unit for at in range(steps + 1)]
        first = (self._low / self._unit).to_integral_value(ROUND_CEILING)
        last = (self._high / self._unit).to_integral_value(ROUND_FLOOR)
        return [at * self._unit for at in range(int(first), int(last) + 1)]

    @property
    def instruction(self) -> str:
        return "Rate each text with a number. Answer with the number and nothing else. Possible numbers: {schema}"

    @property
    def schema(self) -> str:
        """The scale: all its steps if they are few."""
        if self._has_steps and len(self._choices) <= POINTS:
            return ", ".join(self._choices)
        first, last = self._choices[0], self._choices[-1]
        return f"{first} to {last} in steps of {self._unit.normalize():f}"

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. A number, or a text that is one; a blank field or NaN means no label."""
        value = row.get(columns.label)
        if isinstance(value, bool):
            raise DataError(f"the label {value!r} is no number from {self._range}")
        text = gold_text(row, columns.label)
        if not text:
            return None
        label = self._read(text)
        if isinstance(label, ParseFailure):
            raise DataError(f"the label '{text[:60]}' is not allowed: {label.detail[0].lower()}{label.detail[1:]}")
        return label

    def render(self, text: str, label: Label) -> str:
        """The number, rounded to the digits in which numbers are written."""
        return self._text(self._rounded(Decimal(label)))

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. Outer white space and a final period are ignored.

        Reason codes: `empty`, `not-a-number`, `out-of-range`, `between-steps`.
        """
        return self._read(completion)

    def _read(self, completion: str) -> Label | ParseFailure:
        number = completion.strip()
        if not number:
            return ParseFailure("empty", "The completion is empty.", completion)
        if number.endswith(".") and number[-2:-1].isdigit():
            number = number[:-1]
        if not _NUMBER.fullmatch(number):
            detail = f"'{number[:80]}' is no number; allowed: {self._range}."
            return ParseFailure("not-a-number", detail, completion)
        value = Decimal(number)
        if not self._low - _SNAP * self._unit <= value <= self._high + _SNAP * self._unit:
            detail = f"{number[:80]} is out of the range {self._range}."
            return ParseFailure("out-of-range", detail, completion)
        value = min(max(value, self._low), self._high)
        if self._has_steps and abs(value - self._rounded(value)) > _SNAP * self._unit:
            detail = f"{number[:80]} lies between two steps; allowed: {listed(self._choices)}."
            return ParseFailure("between-steps", detail, completion)
        return self._label(value)

    def targets(self, text: str, label: Label) -> list[int]:
        """See `Problem.targets`: the nearest point; of two equally near ones the lower."""
        return [int(np.argmin(np.abs(self._points - float(label))))]

    def spread(self, label: Label) -> Floats:
        """The distribution that a label stands for, `(1, classes)`, summing to 1; its mean is the label."""
        points, value = self._points, float(label)
        above = int(np.clip(np.searchsorted(points, value), 1, len(points) - 1))
        share = np.clip((value - points[above - 1]) / (points[above] - points[above - 1]), 0.0, 1.0)
        distribution = np.zeros((1, len(points)))
        distribution[0, above - 1 : above + 1] = 1 - share, share
        return distribution

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """The mean of the distribution, or the step nearest to it. The confidence is 1 minus the standard deviation in
        halves of the range: 1 if all lies at one point, 0 if one half lies at each end."""
        (scores,) = probabilities
        shares = scores / scores.sum() if scores.sum() > 0 else np.full(len(scores), 1 / len(scores))
        mean = float(shares @ self._points)
        return self._nearest(mean), self._confidence(float(shares @ (self._points - mean) ** 2))

    def merge(self, labels: Sequence[Label], weights: Sequence[float]) -> tuple[Label, float]:
        """The weighted mean of several numbers (or their median, see `RegressionConfig.average`), or the step nearest
        to it, and the confidence as in `decide`. There is at least one label; weights >= 0, all 0 counts as equal."""
        values = np.array([float(label) for label in labels])
        shares = np.asarray(weights, dtype=np.float64)
        shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(values), 1 / len(values))
        middle = float(shares @ values) if self._average == "mean" else _median(values, shares)
        return self._nearest(middle), self._confidence(float(shares @ (values - shares @ values) ** 2))

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        """Whether both are the same number as it would be written."""
        return predicted is not None and self.render("", gold) == self.render("", predicted)

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """rmse: (squared error, 1); mae: (error, 1); spearman: (gold, predicted), of which the metric needs the ranks;
        pearson and quadratic_weighted_kappa: (1, g, p, g^2, p^2, g p), where the scale runs from -1 to 1.

        A row without a prediction counts as predicted at the end of the scale that is farther from the gold number.
        """
        truth, found = float(gold), self._farthest(gold) if predicted is None else float(predicted)
        match metric:
            case "rmse":
                return np.array([(truth - found) ** 2, 1.0])
            case "mae":
                return np.array([abs(truth - found), 1.0])
            case "spearman":
                return np.array([truth, found])
        middle, half = float(self._low + self._high) / 2, float(self._high - self._low) / 2
        g, p = (truth - middle) / half, (found - middle) / half
        return np.array([1.0, g, p, g * g, p * p, g * p])

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. rmse and mae are in the unit of the labels, and less is better. `spearman` is no
        function of sums, see `retort.metrics.ranks`."""
        match metric:
            case "rmse":
                return np.sqrt(ratio(sums[..., 0], sums[..., 1]))
            case "mae":
                return ratio(sums[..., 0], sums[..., 1])
            case "pearson":
                return pearson(sums)
            case "quadratic_weighted_kappa":
                return weighted_kappa(sums)
        raise ConfigError(f"metric '{metric}' does not measure regression")

    def parts(self, label: Label) -> list[str]:
        """The nearest class."""
        return [self._classes[self.targets("", label)[0]]]

    @property
    def _range(self) -> str:
        return f"{self._low.normalize():f} to {self._high.normalize():f}"

    def _rounded(self, value: Decimal) -> Decimal:
        """The nearest number that can be written."""
        origin = self._low if self._has_steps else Decimal(0)
        steps = ((value - origin) / self._unit).to_integral_value(ROUND_HALF_UP)
        written = origin + steps * self._unit
        return min(max(written, Decimal(self._choices[0])), Decimal(self._choices[-1]))

    def _text(self, written: Decimal) -> str:
        digits = max(0, *(-int(one.normalize().as_tuple().exponent) for one in (self._unit, self._low)))
        return f"{written if written else abs(written):.{digits if self._has_steps else self._decimals}f}"

    @property
    def _decimals(self) -> int:
        return max(0, -int(self._unit.as_tuple().exponent))

    def _label(self, value: Decimal) -> Label:
        if self._has_steps:
            return self._text(self._rounded(value))
        exact = round(value, DIGITS).normalize()
        return f"{exact if exact else abs(exact):f}"

    def _nearest(self, value: float) -> Label:
        """The label nearest to a value in the range."""
        return self._label(min(max(Decimal(repr(value)), self._low), self._high))

    def _confidence(self, variance: float) -> float:
        half = float(self._high - self._low) / 2
        return float(np.clip(1 - np.sqrt(max(variance, 0.0)) / half, 0.0, 1.0))

    def _farthest(self, gold: Label) -> float:
        return float(self._low if 2 * Decimal(gold) >= self._low + self._high else self._high)


def pearson(sums: Floats) -> Floats:
    """Moments `(..., 6)` as in `Regression.statistics` -> Pearson's correlation `(...)` in [-1, 1]; 0 if either side
    does not vary."""
    _, _, variances, covariance = _moments(sums)
    product = variances[..., 0] * variances[..., 1]
    varies = (variances > _NO_SPREAD).all(axis=-1)
    return np.clip(ratio(covariance, np.sqrt(np.where(varies, product, 0.0))), -1.0, 1.0)


def weighted_kappa(sums: Floats) -> Floats:
    """Moments `(..., 6)` -> quadratic weighted kappa `(...)` in [-1, 1] (Cohen 1968): 1 minus the mean squared
    difference over the one expected of independent sides with the same distributions, V(g) + V(p) + (E(g) - E(p))^2.
    If all gold and predicted numbers are one number, it is 1. Without rows it is 0."""
    count, means, variances, covariance = _moments(sums)
    apart = (means[..., 0] - means[..., 1]) ** 2
    expected = variances.sum(axis=-1) + apart
    observed = expected - 2 * covariance
    kappa = 1.0 - ratio(observed, np.where(expected > _NO_SPREAD, expected, 0.0))
    return np.where(count > 0, np.clip(kappa, -1.0, 1.0), 0.0)


def _moments(sums: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(number of rows, means `(..., 2)`, variances `(..., 2)`, covariance) of gold and predicted numbers."""
    average = sums / np.maximum(sums[..., :1], 1.0)
    means = average[..., 1:3]
    variances = np.maximum(average[..., 3:5] - means**2, 0.0)
    return sums[..., 0], means, variances, average[..., 5] - means[..., 0] * means[..., 1]


def _median(values: Floats, shares: Floats) -> float:
    """The weighted median: between the two middle values if exactly half of the weight lies below."""
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.cumsum(shares[order]).round(DIGITS + 6)
    first, last = (int(np.searchsorted(below, 0.5, side=side)) for side in ("left", "right"))
    return float(values[first] + values[min(last, len(values) - 1)]) / 2
