"""`evaluate`: predicts gold-labeled rows and scores the predictions.

Besides this step, only `select` and the report read gold labels.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Protocol

from pydantic import Field

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import Pseudolabels
from retort.artifacts.scores import INVALID_SHARE, PREDICTED, PREDICTIONS, Scores, write_scores
from retort.config import Metric, Problem
from retort.io.parquet import Row, aligned, write_rows
from retort.metrics.scores import RowStatistics, score_of
from retort.problems import problem_for
from retort.records.base import ArtifactRef, Label, ParseFailure
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.cross_label import Rows, RowsStep
from retort.store import StepOutput, Store


class EvaluateStudent(RowsStep):
    """Score a student on gold-labeled rows."""

    kind = "evaluate"
    artifact = Scores

    metrics: tuple[Metric, ...]
    resamples: int
    seed: int
    gold: ArtifactRef

    @property
    def most_rows(self) -> int:
        return self.gold.rows

    @property
    def keeps_probabilities(self) -> bool:
        return False

    def rows_in(self, store: Store) -> Rows:
        examples = Examples.open(store, self.gold)
        return lambda: examples.rows(["example_id", "text"])

    def run(self, context: StepContext) -> StepOutput:
        invalid = total = 0

        def rows() -> Iterator[Row]:
            nonlocal invalid, total
            outcomes = (outcome for _, outcome in self.outcomes(context, self.rows_in(context.store)))
            for gold, outcome in zip(self._golds(context.store), outcomes, strict=True):
                total += 1
                if isinstance(outcome, ParseFailure):
                    invalid += 1
                    label, confidence = None, None
                else:
                    invalid += outcome.is_repaired
                    label, confidence = outcome.label, outcome.confidence
                if gold is not None:
                    yield _scored(gold, label, confidence)

        output = score_rows(self, context, rows())
        shares = {INVALID_SHARE: invalid / total} if total else {}
        return output.model_copy(update={"metrics": {**output.metrics, **shares}})

    def _golds(self, store: Store) -> Iterator[Row | None]:
        """For each row the gold-labeled one, if it has a gold label."""
        examples = Examples.open(store, self.gold)
        return (gold for _, (gold,) in aligned(examples.rows(["example_id"]), examples.gold_rows()))


class EvaluateLabels(Step):
    """Score pseudolabels against the pool's own gold labels, if it has any (for the report only, never for a choice),
    or an LLM teacher's labels for the labeled set, where each row was labeled with the others as demonstrations."""

    kind = "evaluate"
    version = 1
    artifact = Scores

    problem: Problem
    metrics: tuple[Metric, ...]
    resamples: int
    seed: int
    rows: Annotated[str | None, Field(exclude_if=lambda rows: rows is None)] = None
    """`labeled` scores the labels of the labeled set, None those of the pool."""
    labels: ArtifactRef
    gold: ArtifactRef

    def run(self, context: StepContext) -> StepOutput:
        found, columns = Pseudolabels.open(context.store, self.labels), ["example_id", "label", "confidence"]
        labels = found.own_rows(columns) if self.rows == "labeled" else found.rows(columns)
        examples = Examples.open(context.store, self.gold)
        known = aligned(examples.rows(["example_id"]), examples.gold_rows(), labels)
        rows = (
            _scored(gold, *((label["label"], label["confidence"]) if label else (None, None)))
            for _, (gold, label) in known
            if gold is not None
        )
        return score_rows(self, context, rows)


def _scored(gold: Row, predicted: Label | None, confidence: float | None) -> Row:
    names = {"example_id": gold["example_id"], "text": gold["text"], "gold": gold["label"]}
    return {**names, "predicted": predicted, "confidence": confidence}


class Scored(Protocol):
    """A step that scores labels."""

    @property
    def problem(self) -> Problem: ...
    @property
    def metrics(self) -> tuple[Metric, ...]: ...
    @property
    def resamples(self) -> int: ...
    @property
    def seed(self) -> int: ...


def score_rows(step: Scored, context: StepContext, rows: Iterable[Row]) -> StepOutput:
    """Write the rows (example_id, text, gold, predicted, confidence), and their scores; none if there are no rows."""
    problem = problem_for(step.problem)
    statistics = RowStatistics(problem, step.metrics)

    def noted() -> Iterator[Row]:
        for row in rows:
            statistics.add(row["gold"], row["predicted"])
            yield row

    count = write_rows(context.folder / PREDICTIONS, PREDICTED, noted())
    scores = [
        score_of(problem, metric, statistics.of(metric), resamples=step.resamples, seed=step.seed)
        for metric in (step.metrics if count else ())
    ]
    write_scores(context.folder, scores)
    return StepOutput(rows=count, metrics={score.metric: score.value for score in scores})
