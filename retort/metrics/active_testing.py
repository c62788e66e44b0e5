"""Active testing: a score from the labels of a few rows, which are drawn where the student is likely to err.

Rows are drawn without replacement, by the root of the mean square of what is expected to be wrong in the prediction
(Sawade, Bickel and Scheffer 2010), mixed with chance so that no weight explodes (Hesterberg 1995). The weights of LURE
(Farquhar, Gal and Rainforth 2021; Kossen et al. 2021, "Active Testing") make the sums of the metric's statistics
unbiased, whatever the confidences are worth. What is weighted is the difference to the statistics of a student that is
right in every row, which are known for all rows: a right prediction then adds no noise. Metrics that are ratios of sums
(F1) are consistent. That labels of test rows should be bought where they tell most is the idea of ALT-MAS (arXiv
2104.04999).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retort.config import ERRORS, Metric
from retort.metrics.bootstrap import bootstrap
from retort.metrics.scores import value_of
from retort.problems.base import Floats, Problem, Scale
from retort.records.base import Label, Score

CHANCE = 0.3
"""Share of the draws that is left to chance, so no row weighs more than 1 / 0.3 of what it would at random."""
FEWEST = 10
"""Labels without which no estimate is made."""


def draw_chances(confidences: Floats, units: Floats | float = 1.0) -> Floats:
    """The chance of each row to be drawn first, `(n,)`, summing to 1, from the confidences of its prediction.

    A confidence is that of one of the label's `units`, `(n,)`, on average. If they err independently, the number of
    wrong ones is binomial; the chance is the root of its mean square, which for one unit is that of 1 - confidence.
    """
    sure = np.clip(confidences, 0.0, 1.0)
    wrong = units * (1 - sure)
    spread = np.sqrt(wrong * sure + wrong**2)
    even = np.full(len(sure), 1 / len(sure))
    return CHANCE * even + (1 - CHANCE) * (spread / spread.sum() if spread.sum() > 0 else even)


def draw(chances: Floats, count: int, seed: int) -> NDArray[np.int64]:
    """The places of `count` rows in the order in which they are drawn, one after another without replacement, each by
    its chance among those that are left."""
    arrivals = np.random.default_rng(seed).exponential(size=len(chances)) / chances
    return np.argsort(arrivals, kind="stable")[:count]


def weights(chances: Floats, rows: int) -> Floats:
    """LURE's weights, `(m,)`, of the first m of `rows` rows that were drawn; `chances` are those of `draw_chances` for
    these m, in the order of the draws."""
    drawn = np.arange(1, len(chances) + 1)
    left = 1 - np.concatenate([[0.0], np.cumsum(chances)[:-1]])
    if len(chances) == rows:
        return np.ones(rows)
    fair = left / (chances * (rows - drawn + 1))
    return 1 + (rows - len(chances)) / (rows - drawn) * (fair - 1)


def if_right(problem: Problem, metric: Metric, predicted: Label | None) -> Floats:
    """A row's statistics if its prediction is right, `(d,)`; nothing is supposed of a row without one."""
    if predicted is None:
        return np.zeros(1)
    return problem.statistics(metric, predicted, predicted)


def estimate(
    problem: Problem,
    metric: Metric,
    known: Floats,
    rows: int,
    drawn: Sequence[tuple[Label, Label | None, float]],
    resamples: int,
    seed: int,
) -> Score:
    """The score on all `rows`, with a 95 % bootstrap interval, from (gold, predicted, chance) of those that were drawn,
    in the order of the draws. `known` is the sum of `if_right` over all rows, `(d,)`.

    The interval also holds that of a sample with one row more, in which all is wrong: a few rows without a mistake do
    not prove that there is none.
    """
    weight = weights(np.array([chance for _, _, chance in drawn]), rows)
    apart = np.stack(
        [problem.statistics(metric, gold, label) - if_right(problem, metric, label) for gold, label, _ in drawn]
    )
    wrong = np.stack([problem.statistics(metric, gold, None) for gold, _, _ in drawn])
    right = np.stack([problem.statistics(metric, gold, gold) for gold, _, _ in drawn])
    terms = rows * weight[:, None] * apart
    value, low, high = bootstrap((known + terms) / len(terms), value_of(problem, metric), resamples, seed)
    if not isinstance(problem, Scale):
        more = np.vstack([terms, rows * (wrong - right).mean(axis=0)])
        _, lower, higher = bootstrap((known + more) / len(more), value_of(problem, metric), resamples, seed)
        low, high = min(low, lower), max(high, higher)
    if metric not in ERRORS:
        least = -1.0 if metric in ("pearson", "quadratic_weighted_kappa") else 0.0
        value, low, high = (float(np.clip(one, least, 1.0)) for one in (value, low, high))
    return Score(metric=metric, value=value, low=low, high=high, n=len(drawn))
