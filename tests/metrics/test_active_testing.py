"""The estimate from few labels: unbiased, better than rows at random, with intervals that hold what they promise."""

from collections.abc import Sequence

import numpy as np
import pytest

from retort.config import ClassificationConfig, Metric, RegressionConfig
from retort.metrics.active_testing import CHANCE, draw, draw_chances, estimate, if_right, weights
from retort.problems import problem_for
from retort.problems.base import Floats, Problem
from retort.records.base import Score

CLASSES = problem_for(ClassificationConfig(kind="classification", labels=["down", "up"]))
ROWS = 400


def test_chances() -> None:
    chances = draw_chances(np.array([1.0, 0.75, 0.0, 1.0]))
    assert chances.sum() == pytest.approx(1.0)
    assert chances.min() == pytest.approx(CHANCE / 4)
    assert (chances[2] - CHANCE / 4) / (chances[1] - CHANCE / 4) == pytest.approx(2.0)
    assert draw_chances(np.ones(5)) == pytest.approx(np.full(5, 0.2))
    longer = draw_chances(np.array([0.9, 0.9]), np.array([1.0, 10.0])) - CHANCE / 2
    assert longer[1] / longer[0] == pytest.approx(np.sqrt((10 * 0.1 * 0.9 + 1) / 0.1))


def test_draws_are_of_different_rows_and_all_in_the_end() -> None:
    chances = draw_chances(np.linspace(0, 1, 50))
    assert sorted(draw(chances, 50, seed=1)) == list(range(50))
    assert list(draw(chances, 50, seed=1)[:10]) == list(draw(chances, 10, seed=1))
    first = [draw(chances, 1, seed)[0] for seed in range(3000)]
    assert np.bincount(first, minlength=50)[:10].sum() / 3000 == pytest.approx(chances[:10].sum(), abs=0.03)


def test_weights_are_those_of_the_paper() -> None:
    """Kossen et al. 2021, equation 6: v_m = 1 + (N - M) / (N - m) (1 / ((N - m + 1) q_m) - 1)."""
    chances = np.array([0.5, 0.3])
    assert weights(chances, 4) == pytest.approx(
        [1 + 2 / 3 * (1 / (4 * 0.5) - 1), 1 + 2 / 2 * (1 / (3 * (0.3 / 0.5)) - 1)]
    )
    assert list(weights(np.array([0.2, 0.5, 0.3]), 3)) == [1.0, 1.0, 1.0]


def student(seed: int) -> tuple[list[str], list[str], Floats]:
    """(gold, predicted, confidences): a student of 85 % that is surer than it should be."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(1.8, 1.5, ROWS)
    right = generator.random(ROWS) < 1 / (1 + np.exp(-logits))
    golds = ["up" if one else "down" for one in generator.random(ROWS) < 0.6]
    said = [gold if good else ("down" if gold == "up" else "up") for gold, good in zip(golds, right, strict=True)]
    return golds, said, 1 / (1 + np.exp(-1.5 * logits))


def estimated(
    problem: Problem, metric: Metric, golds: Sequence[str], said: Sequence[str | None], chances: Floats, seed: int
) -> Score:
    known = sum((if_right(problem, metric, label) for label in said), start=np.zeros(1))
    drawn = [(golds[at], said[at], float(chances[at])) for at in draw(chances, 60, seed)]
    return estimate(problem, metric, known, len(golds), drawn, 200, seed)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_estimate_is_right_on_average_and_its_interval_holds(metric: Metric) -> None:
    golds, said, sure = student(0)
    statistics = np.sum([CLASSES.statistics(metric, gold, label) for gold, label in zip(golds, said, strict=True)], 0)
    truth = float(CLASSES.value(metric, statistics))
    active = [estimated(CLASSES, metric, golds, said, draw_chances(sure), seed) for seed in range(120)]
    values = np.array([score.value for score in active])
    error = values.std() / np.sqrt(len(values))
    assert values.mean() == pytest.approx(truth, abs=4 * error + (0.01 if metric == "macro_f1" else 0))
    assert np.mean([score.low <= truth <= score.high for score in active]) > 0.9
    even = np.full(ROWS, 1 / ROWS)
    at_random = np.array([estimated(CLASSES, metric, golds, said, even, seed).value for seed in range(120)])
    assert values.std() < at_random.std()


def test_no_mistake_among_few_rows_proves_no_perfect_student() -> None:
    golds = ["up"] * ROWS
    score = estimated(CLASSES, "accuracy", golds, list(golds), draw_chances(np.full(ROWS, 0.9)), 0)
    assert score.value == 1.0
    assert 0.9 < score.low < 0.99


def test_rows_without_a_prediction_and_numbers() -> None:
    golds, said, sure = student(1)
    missing: list[str | None] = [None if at % 10 == 0 else label for at, label in enumerate(said)]
    truth = np.mean([gold == label for gold, label in zip(golds, missing, strict=True)])
    sure = np.where([label is None for label in missing], 0.0, sure)
    values = [estimated(CLASSES, "accuracy", golds, missing, draw_chances(sure), seed).value for seed in range(60)]
    assert np.mean(values) == pytest.approx(truth, abs=0.025)
    numbers = problem_for(RegressionConfig(kind="regression", low=0, high=10, step=1))
    marks = [str(at % 11) for at in range(ROWS)]
    off = [str(min(10, int(mark) + at % 2)) for at, mark in enumerate(marks)]
    truth = np.mean([abs(int(one) - int(other)) for one, other in zip(marks, off, strict=True)])
    scores = [estimated(numbers, "mae", marks, off, np.full(ROWS, 1 / ROWS), seed) for seed in range(60)]
    assert np.mean([score.value for score in scores]) == pytest.approx(truth, abs=0.03)
    assert np.mean([score.low <= truth <= score.high for score in scores]) > 0.9


def test_all_rows_labeled_is_the_score_itself() -> None:
    golds, said, sure = student(2)
    known = np.sum([if_right(CLASSES, "accuracy", label) for label in said], axis=0)
    chances = draw_chances(sure)
    drawn = [(golds[at], said[at], float(chances[at])) for at in draw(chances, ROWS, 0)]
    truth = np.mean([gold == label for gold, label in zip(golds, said, strict=True)])
    assert estimate(CLASSES, "accuracy", known, ROWS, drawn, 300, 0).value == pytest.approx(truth)
