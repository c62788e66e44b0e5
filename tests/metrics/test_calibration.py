"""Calibration: known numbers, an independent search, and the rows that break naive ones."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from retort.errors import DataError
from retort.metrics.calibration import (
    CALIBRATION_TEMPERATURES,
    Calibration,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    label_probabilities,
    negative_log_likelihood,
    outside_mass,
)
from retort.problems.base import Floats

LOW, HIGH = CALIBRATION_TEMPERATURES


def some_scores(n: int, classes: int, scale: float, seed: int = 0) -> Floats:
    """Unnormalized: each row's probabilities sum to 0.7."""
    logits = scale * np.random.default_rng(seed).normal(size=(n, classes))
    return np.log(0.7) + logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_scores_are_renormalized_and_what_is_missing_is_outside() -> None:
    scores = np.log([[0.2, 0.1, 0.1], [0.5, 0.25, 0.25]])
    assert label_probabilities(scores) == pytest.approx(np.array([[0.5, 0.25, 0.25]] * 2))
    assert outside_mass(scores) == pytest.approx([0.6, 0.0])


def test_the_calibration_temperature_flattens_and_sharpens() -> None:
    scores = np.log([[0.4, 0.1]])
    assert label_probabilities(scores, 2.0) == pytest.approx(np.array([[2 / 3, 1 / 3]]))
    assert label_probabilities(scores, 0.5) == pytest.approx(np.array([[16 / 17, 1 / 17]]))


@given(
    st.lists(st.lists(st.floats(-800, 0), min_size=3, max_size=3), min_size=1, max_size=20),
    st.floats(LOW, HIGH),
)
def test_probabilities_sum_to_1_and_keep_the_order(scores: list[list[float]], temperature: float) -> None:
    array = np.array(scores)
    probabilities = label_probabilities(array, temperature)
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    best = np.take_along_axis(probabilities, array.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert best == pytest.approx(probabilities.max(axis=1))
    assert ((outside_mass(array) >= 0) & (outside_mass(array) <= 1)).all()


def test_the_fit_finds_the_temperature_that_the_labels_were_drawn_with() -> None:
    scores, generator = some_scores(20_000, 4, scale=3.0), np.random.default_rng(1)
    truth = label_probabilities(scores, 2.5)
    gold = np.array([generator.choice(4, p=row) for row in truth])
    fitted = fit_temperature(scores, gold)
    assert fitted == pytest.approx(2.5, abs=0.06)
    before, after = label_probabilities(scores), label_probabilities(scores, fitted)
    assert expected_calibration_error(after, gold) < 0.02 < 0.1 < expected_calibration_error(before, gold)
    assert negative_log_likelihood(after, gold) < negative_log_likelihood(before, gold)


@given(st.integers(1, 8), st.integers(0, 10_000))
def test_the_fit_is_as_good_as_the_best_of_a_grid(n: int, seed: int) -> None:
    scores = some_scores(n, 3, scale=2.0, seed=seed)
    gold = np.random.default_rng(seed).integers(3, size=n)
    grid = np.geomspace(LOW, HIGH, 200)
    best = min(negative_log_likelihood(label_probabilities(scores, t), gold) for t in grid)
    assert negative_log_likelihood(label_probabilities(scores, fit_temperature(scores, gold)), gold) <= best + 1e-9


def test_one_row_all_right_all_wrong_and_all_alike() -> None:
    scores = some_scores(50, 3, scale=2.0)
    best, worst = scores.argmax(axis=1), scores.argmin(axis=1)
    assert fit_temperature(scores[:1], best[:1]) < 0.2
    assert fit_temperature(scores, best) == pytest.approx(LOW, rel=0.5)
    assert fit_temperature(scores[:1], worst[:1]) == fit_temperature(scores, worst) == pytest.approx(HIGH)
    assert fit_temperature(np.full((4, 3), -2.0), np.array([0, 1, 2, 0])) == 1.0


def test_a_label_without_any_probability() -> None:
    scores = np.array([[0.0, -np.inf], [-0.1, -3.0]])
    assert label_probabilities(scores)[0] == pytest.approx([1, 0])
    assert fit_temperature(scores, np.array([1, 0])) == pytest.approx(HIGH)
    assert np.isfinite(negative_log_likelihood(label_probabilities(scores), np.array([1, 0])))


def test_the_calibration_error_by_hand() -> None:
    """Bins (0.5, 0.6], (0.6, 0.7], (0.9, 1]: 2, 1 and 1 rows."""
    probabilities = np.array([[0.55, 0.45], [0.6, 0.4], [0.35, 0.65], [1.0, 0.0]])
    gold = np.array([0, 1, 1, 0])
    by_hand = (2 * abs(1 / 2 - 0.575) + abs(1 - 0.65) + abs(1 - 1)) / 4
    assert expected_calibration_error(probabilities, gold) == pytest.approx(by_hand)
    assert expected_calibration_error(probabilities, gold, bins=1) == pytest.approx(abs(3 / 4 - 2.8 / 4))
    assert expected_calibration_error(np.array([[0.0, 1.0]]), np.array([0])) == 1.0


def test_likelihood_and_brier_score_agree_with_others() -> None:
    probabilities, gold = label_probabilities(some_scores(100, 3, 2.0)), np.random.default_rng(0).integers(3, size=100)
    assert negative_log_likelihood(probabilities, gold) == pytest.approx(log_loss(gold, probabilities))
    assert brier_score(probabilities, gold) == pytest.approx(((probabilities - np.eye(3)[gold]) ** 2).sum() / 100)
    assert brier_score(np.array([[0.0, 1.0]]), np.array([0])) == 2.0


def test_no_rows() -> None:
    empty, none = np.empty((0, 3)), np.empty(0, dtype=np.int64)
    for function in (fit_temperature, negative_log_likelihood, brier_score, expected_calibration_error):
        with pytest.raises(DataError, match="no gold-labeled rows"):
            function(empty, none)


def test_rows_in_batches_are_measured_as_all_at_once_to_the_bit_and_not_kept() -> None:
    generator = np.random.default_rng(0)
    probabilities, gold = generator.dirichlet(np.ones(60), 20_000), generator.integers(60, size=20_000)
    whole = Calibration.of(probabilities, gold)
    tracemalloc.start()
    found = Calibration()
    for start in range(0, 20_000, 777):
        found.add(probabilities[start : start + 777], gold[start : start + 777])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 32 * 20_000, "a row's probabilities are 480 bytes"
    for one, other in (
        (found.expected_error(), whole.expected_error()),
        (found.negative_log_likelihood, whole.negative_log_likelihood),
        (found.brier_score, whole.brier_score),
    ):
        assert one == other
