"""How good estimates of a test score from few labels are: error, and how often the interval holds the true score.

    .venv/bin/python benchmarks/active_testing.py [--rows 2000] [--labels 100] [--times 400]

Students are simulated: the logit of being right is normal, and the confidence is its sigmoid, or that of 2.5 times as
much for one that is too sure. Each is tested on rows at random and on those that `retort review` draws.
"""

import argparse

import numpy as np

from retort.config import ClassificationConfig
from retort.metrics.active_testing import draw, draw_chances, estimate
from retort.problems import problem_for
from retort.problems.base import Floats

PROBLEM = problem_for(ClassificationConfig(kind="classification", labels=["down", "up"]))

DRAWS = 1_000_000
"""Added to the seed of the draws, so that they do not depend on the student."""


def trial(rows: int, labels: int, accuracy: float, sureness: float, active: bool, seed: int) -> tuple[float, bool]:
    """(error of the estimated accuracy, whether the interval holds the true one)"""
    generator = np.random.default_rng(seed)
    logits = generator.normal(1.6 * np.log(accuracy / (1 - accuracy)), 1.5, rows)
    right = generator.random(rows) < 1 / (1 + np.exp(-logits))
    sure: Floats = 1 / (1 + np.exp(-sureness * logits))
    chances = draw_chances(sure) if active else np.full(rows, 1 / rows)
    drawn = [("up", "up" if right[at] else "down", float(chances[at])) for at in draw(chances, labels, seed + DRAWS)]
    known = np.array([rows, rows], dtype=np.float64)
    score = estimate(PROBLEM, "accuracy", known, rows, drawn, 500, seed)
    truth = float(right.mean())
    return score.value - truth, score.low <= truth <= score.high


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--times", type=int, default=400)
    given = parser.parse_args()
    for accuracy in (0.7, 0.9, 0.97):
        for sureness in (1.0, 2.5):
            for active in (False, True):
                trials = [
                    trial(given.rows, given.labels, accuracy, sureness, active, seed) for seed in range(given.times)
                ]
                errors = np.array([error for error, _ in trials])
                print(
                    f"about {accuracy:.0%}, {'too sure' if sureness > 1 else 'calibrated'}, "
                    f"{'drawn ' if active else 'random'}: mean error {100 * errors.mean():+.2f}, standard error "
                    f"{100 * np.sqrt((errors**2).mean()):.2f} points; the interval holds in "
                    f"{np.mean([held for _, held in trials]):.1%}"
                )


if __name__ == "__main__":
    main()
