"""`score`: compares predictions with gold labels: accuracy, calibration, and accuracy by group, over all seeds."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from retort.artifacts.examples import Examples
from retort.artifacts.probabilities import Probabilities
from retort.artifacts.scores import ANSWERED, ANSWERS, SCORES, ArmScores, GroupScore, SeedScores
from retort.config import ClassificationConfig, Metric
from retort.errors import DataError
from retort.io.parquet import Row, aligned, write_rows
from retort.metrics.bootstrap import value_on
from retort.metrics.calibration import Calibration
from retort.metrics.scores import RowStatistics, mean_scores_of, value_of
from retort.metrics.seeds import SeedScore, over_seeds
from retort.problems import problem_for
from retort.problems.base import Floats, Problem
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput


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
        problem, seeds = problem_for(self.problem), list[_Seed]()
        examples = Examples.open(context.store, self.gold)

        def rows() -> Iterator[Row]:
            for found in self._found(context, problem, examples):
                seeds.append(_Seed(RowStatistics(problem, self.metrics)))
                for row in seeds[-1].answers(problem, examples.gold_rows(), found):
                    yield {**row, "seed": len(seeds) - 1}

        write_rows(context.folder / ANSWERS, ANSWERED, rows())
        total, missing = len(seeds[0].statistics), seeds[0].missing
        scores = ArmScores(n=total, missing=missing)
        if missing < total:
            scores = ArmScores(
                n=total,
                missing=missing,
                metrics=self._metrics(problem, seeds),
                rows=mean_scores_of(
                    problem, self.metrics, [one.statistics for one in seeds], self.resamples, self.seed
                ),
                groups=self._groups(examples, seeds),
            )
        (context.folder / SCORES).write_text(scores.model_dump_json(indent=1), encoding="utf-8")
        metrics = {name: one.mean for name, one in scores.metrics.items()}
        return StepOutput(rows=total, counts={"missing": missing}, metrics=metrics)

    def _found(self, context: StepContext, problem: Problem, examples: Examples) -> Iterator[Iterator[Floats]]:
        """Each seed's probabilities beside the gold-labeled rows."""
        for ref in self.predictions:
            probabilities = Probabilities.open(context.store, ref)
            for seed in probabilities.seeds() or [0]:
                yield probabilities.beside(examples.gold_path, problem.classes, seed)

    def _metrics(self, problem: Problem, seeds: Sequence["_Seed"]) -> dict[str, SeedScore]:
        values: dict[str, list[float]] = {
            metric: [value_on(one.statistics.of(metric), value_of(problem, metric)) for one in seeds]
            for metric in self.metrics
        }
        values["ece"] = [one.calibration.expected_error() for one in seeds]
        values["nll"] = [one.calibration.negative_log_likelihood for one in seeds]
        values["brier"] = [one.calibration.brier_score for one in seeds]
        return {name: over_seeds(of_seeds) for name, of_seeds in values.items()}

    def _groups(self, examples: Examples, seeds: Sequence["_Seed"]) -> tuple[GroupScore, ...]:
        """Accuracy by group, the worst first; empty if the rows have no groups."""
        if next(examples.group_rows(), None) is None:
            return ()
        numbers: dict[str, int] = {}
        group_of = array("i")
        for gold, (group,) in aligned(examples.gold_rows(["example_id"]), examples.group_rows()):
            if group is None:
                raise DataError(f"{self.name}: '{gold['example_id']}' belongs to no group")
            group_of.append(numbers.setdefault(group["group"], len(numbers)))
        order = np.argsort(group_of, kind="stable")
        ends = np.cumsum(np.bincount(group_of))[:-1]
        right = np.zeros(len(group_of))
        for one in seeds:
            right += np.frombuffer(one.right, dtype=np.bool_)
        right /= len(seeds)
        parts = zip(numbers, np.split(right[order], ends), strict=True)
        scores = [GroupScore(group=name, n=len(part), accuracy=float(np.mean(part))) for name, part in parts]
        return tuple(sorted(scores, key=lambda one: (one.accuracy, one.group)))


@dataclass
class _Seed:
    """What is kept of one seed's answers."""

    statistics: RowStatistics
    calibration: Calibration = field(default_factory=Calibration)
    """Of the rows with probabilities."""
    right: bytearray = field(default_factory=bytearray)
    """1 where the answer is right, else 0."""
    missing: int = 0

    def answers(self, problem: Problem, gold: Iterator[Row], found: Iterator[Floats]) -> Iterator[Row]:
        """Yield example_id, gold and predicted of each row, None for one without probabilities."""
        numbers = {name: number for number, name in enumerate(problem.classes)}
        for values in found:
            known = ~np.isnan(values).any(axis=1)
            rows = list(islice(gold, len(values)))
            indices = np.array([numbers[row["label"]] for row in rows])
            self.calibration.add(values[known], indices[known])
            self.missing += int((~known).sum())
            best = np.where(known, values.argmax(axis=1), -1).tolist()
            for row, number in zip(rows, best, strict=True):
                label = None if number < 0 else problem.classes[number]
                self.statistics.add(row["label"], label)
                self.right.append(label == row["label"])
                yield {"example_id": row["example_id"], "gold": row["label"], "predicted": label}
