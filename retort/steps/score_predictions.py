"""`score`: compares predictions with gold labels: accuracy, calibration, and accuracy by group, over all seeds."""

from collections.abc import Iterable, Sequence

import numpy as np

from retort.artifacts.examples import Examples
from retort.artifacts.probabilities import Probabilities
from retort.artifacts.scores import ANSWERED, ANSWERS, SCORES, ArmScores, GroupScore, SeedScores
from retort.config import ClassificationConfig, Metric
from retort.errors import DataError
from retort.io.parquet import Row, write_rows
from retort.metrics.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from retort.metrics.scores import mean_scores
from retort.metrics.seeds import SeedScore, over_seeds
from retort.problems import problem_for
from retort.problems.base import Floats, Problem
from retort.records.base import ArtifactRef, Example, Label, Score
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput

Labels = Sequence[Label | None]
"""The labels of all rows from one seed; None for rows without a prediction."""


class ScorePredictions(Step):
    """Compare an arm's predictions with gold labels, over all its seeds."""

    kind = "score"
    version = 1
    artifact = SeedScores

    problem: ClassificationConfig
    metrics: tuple[Metric, ...]
    resamples: int
    seed: int
    predictions: tuple[ArtifactRef, ...]
    """One artifact with all seeds, or one per seed."""
    gold: ArtifactRef

    def run(self, context: StepContext) -> StepOutput:
        problem = problem_for(self.problem)
        examples = Examples.open(context.store, self.gold)
        gold = examples.gold()
        ids = [example.example_id for example in gold]
        probabilities = np.concatenate(
            [Probabilities.open(context.store, ref).aligned(ids, problem.classes) for ref in self.predictions]
        )
        labels = [_labels(problem, of_seed) for of_seed in probabilities]
        write_rows(context.folder / ANSWERS, ANSWERED, _answer_rows(gold, labels))
        missing = int(np.isnan(probabilities[0]).any(axis=-1).sum())
        scores = ArmScores(n=len(gold), missing=missing)
        if missing < len(gold):
            scores = ArmScores(
                n=len(gold),
                missing=missing,
                metrics=self._metrics(problem, gold, labels, probabilities),
                rows=self._row_scores(problem, gold, labels),
                groups=self._groups(examples.groups(), gold, labels),
            )
        (context.folder / SCORES).write_text(scores.model_dump_json(indent=1), encoding="utf-8")
        metrics = {name: one.mean for name, one in scores.metrics.items()}
        return StepOutput(rows=len(gold), counts={"missing": missing}, metrics=metrics)

    def _metrics(
        self, problem: Problem, gold: list[Example], labels: Sequence[Labels], probabilities: Floats
    ) -> dict[str, SeedScore]:
        golds = [example.label or "" for example in gold]
        indices = np.array([problem.classes.index(label) for label in golds])
        values: dict[str, list[float]] = {
            metric: [_value(problem, metric, golds, of_seed) for of_seed in labels] for metric in self.metrics
        }
        known = [~np.isnan(of_seed).any(axis=-1) for of_seed in probabilities]
        for name, measure in (
            ("ece", expected_calibration_error),
            ("nll", negative_log_likelihood),
            ("brier", brier_score),
        ):
            pairs = zip(probabilities, known, strict=True)
            values[name] = [measure(of_seed[rows], indices[rows]) for of_seed, rows in pairs]
        return {name: over_seeds(of_seeds) for name, of_seeds in values.items()}

    def _row_scores(self, problem: Problem, gold: list[Example], labels: Sequence[Labels]) -> dict[Metric, Score]:
        golds = [example.label or "" for example in gold]
        return mean_scores(problem, self.metrics, golds, labels, self.resamples, self.seed)

    def _groups(self, groups: dict[str, str], gold: list[Example], labels: Sequence[Labels]) -> tuple[GroupScore, ...]:
        """Accuracy by group, the worst first; empty if the rows have no groups."""
        right: dict[str, list[float]] = {}
        for at, example in enumerate(gold if groups else ()):
            if example.example_id not in groups:
                raise DataError(f"{self.name}: '{example.example_id}' belongs to no group")
            mean = float(np.mean([of_seed[at] == example.label for of_seed in labels]))
            right.setdefault(groups[example.example_id], []).append(mean)
        scores = [GroupScore(group=name, n=len(ones), accuracy=float(np.mean(ones))) for name, ones in right.items()]
        return tuple(sorted(scores, key=lambda one: (one.accuracy, one.group)))


def _labels(problem: Problem, probabilities: Floats) -> list[Label | None]:
    """Decide labels from `(rows, classes)`; None for rows without probabilities."""
    return [None if np.isnan(row).any() else problem.decide("", row[None])[0] for row in probabilities]


def _answer_rows(gold: list[Example], labels: Sequence[Labels]) -> Iterable[Row]:
    for seed, of_seed in enumerate(labels):
        for example, label in zip(gold, of_seed, strict=True):
            yield {"example_id": example.example_id, "gold": example.label, "predicted": label, "seed": seed}


def _value(problem: Problem, metric: Metric, golds: list[Label], labels: Labels) -> float:
    sums = sum(problem.statistics(metric, gold, label) for gold, label in zip(golds, labels, strict=True))
    return float(problem.value(metric, np.asarray(sums)))
