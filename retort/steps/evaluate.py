"""`evaluate`: predicts gold-labeled rows and scores the predictions.

Besides this step, only `select` and the report read gold labels.
"""

from typing import Annotated, Protocol

from pydantic import Field

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import Pseudolabels
from retort.artifacts.scores import INVALID_SHARE, PREDICTED, PREDICTIONS, Scores, write_scores
from retort.config import Metric, Problem
from retort.io.parquet import write_rows
from retort.metrics.scores import all_statistics, score_of
from retort.problems import problem_for
from retort.records.base import ArtifactRef, Example, Label, ParseFailure, Score
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.cross_label import Rows, RowsStep
from retort.store import StepOutput, Store

Labels = dict[str, tuple[Label | None, float | None]]
"""(label, confidence) by example_id."""


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
        labels: Labels = {}
        invalid = total = 0
        for row, outcome in self.outcomes(context, self.rows_in(context.store)):
            total += 1
            if isinstance(outcome, ParseFailure):
                invalid += 1
            else:
                invalid += outcome.is_repaired
                labels[row["example_id"]] = (outcome.label, outcome.confidence)
        output = score_rows(self, context, Examples.open(context.store, self.gold).gold(), labels)
        shares = {INVALID_SHARE: invalid / total} if total else {}
        return output.model_copy(update={"metrics": {**output.metrics, **shares}})


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
        rows = found.own_rows(columns) if self.rows == "labeled" else found.rows(columns)
        labels = {row["example_id"]: (row["label"], row["confidence"]) for row in rows}
        return score_rows(self, context, Examples.open(context.store, self.gold).gold(), labels)


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


def score_rows(step: Scored, context: StepContext, gold: list[Example], predicted: Labels) -> StepOutput:
    """Write each gold-labeled row with its prediction, and the scores."""
    labels = [predicted.get(example.example_id, (None, None)) for example in gold]
    rows = (
        {"example_id": e.example_id, "text": e.text, "gold": e.label, "predicted": label, "confidence": confidence}
        for e, (label, confidence) in zip(gold, labels, strict=True)
    )
    write_rows(context.folder / PREDICTIONS, PREDICTED, rows)
    scores = _scores(step, gold, [label for label, _ in labels])
    write_scores(context.folder, scores)
    return StepOutput(rows=len(gold), metrics={score.metric: score.value for score in scores})


def _scores(step: Scored, gold: list[Example], labels: list[Label | None]) -> list[Score]:
    golds = [example.label for example in gold if example.label is not None]
    if not golds:
        return []
    problem = problem_for(step.problem)
    return [
        score_of(problem, metric, rows, resamples=step.resamples, seed=step.seed)
        for metric, rows in all_statistics(problem, step.metrics, golds, labels).items()
    ]
