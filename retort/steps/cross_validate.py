"""`cross-validate`: what fine-tuning on the labeled set would give, measured on that set: each fold is labeled by a
student that was fine-tuned on the other folds. Steps side by side take some folds each, and `gather-folds` scores all
labels together.
"""

from retort.artifacts.examples import Examples
from retort.artifacts.scores import Scores
from retort.config import Metric, Problem
from retort.data.partitions import folds_of
from retort.errors import StageFailed
from retort.io.parquet import aligned
from retort.models.weights import Weights
from retort.records.base import ArtifactRef, Example, Label, ParseFailure
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.evaluate import score_rows
from retort.steps.train_student import TrainingStep
from retort.store import StepOutput

Labeled = tuple[Label | None, float | None]
"""(label, confidence); None if the student gave no label."""


class CrossValidate(TrainingStep):
    """For some folds of `labels` (gold-labeled examples): fine-tune `start` on all others and score it on that one."""

    kind = "cross-validate"
    version = 2
    artifact = Scores

    folds: int
    only: tuple[int, ...]
    """Numbers of the folds that are scored, each in [0, folds). One that is larger than there are rows has none."""
    metrics: tuple[Metric, ...]
    resamples: int

    def run(self, context: StepContext) -> StepOutput:
        from retort.students.data_parallel import joined

        gold = Examples.open(context.store, self.labels).gold()
        if len(gold) < 2:
            raise StageFailed(f"{self.name}: the labeled set has {len(gold)} row(s); at least 2 are needed to judge it")
        every, labels = folds_of([row.example_id for row in gold], self.folds, self.seed), dict[str, Labeled]()
        folds = [fold for number, fold in enumerate(every) if number in self.only]
        weights = self.found_weights()
        with joined(context.rank):
            for done, fold in enumerate(folds):
                context.progress(done, len(folds), "folds")
                labels |= self._labels_of(context, weights, gold, fold)
        rows = (
            {"example_id": row.example_id, "text": row.text, "gold": row.label, "predicted": label, "confidence": sure}
            for row in gold
            if row.example_id in labels
            for label, sure in [labels[row.example_id]]
        )
        return score_rows(self, context, rows)

    def _labels_of(
        self, context: StepContext, weights: Weights, gold: list[Example], fold: list[int]
    ) -> dict[str, Labeled]:
        from retort.models.device import choose_device
        from retort.students.base import TrainingRow
        from retort.students.interpolation import interpolated

        shares = self.cpu_shares * context.rank.size
        device = choose_device(context.execution.device, self.training.precision, shares)
        as_scored = choose_device(context.execution.device, "auto", shares)
        student, _ = self.untrained(context, weights)
        others = [TrainingRow(row.text, str(row.label)) for at, row in enumerate(gold) if at not in fold]
        with interpolated(student.model, self.interpolation):
            student.train(others, self.training, seed=self.seed, device=device, micro_batches=2**context.attempt)
        held = [gold[at] for at in fold]
        outcomes = student.predict((row.text for row in held), device=as_scored, total=len(held))
        return {
            row.example_id: (None, None) if isinstance(outcome, ParseFailure) else (outcome.label, outcome.confidence)
            for row, outcome in zip(held, outcomes, strict=True)
        }


class GatherFolds(Step):
    """Score the labels of all folds together."""

    kind = "gather-folds"
    version = 1
    artifact = Scores

    problem: Problem
    metrics: tuple[Metric, ...]
    resamples: int
    seed: int
    parts: tuple[ArtifactRef, ...]
    """Scores of some folds each."""
    gold: ArtifactRef

    def run(self, context: StepContext) -> StepOutput:
        found = [Scores.open(context.store, ref).predictions() for ref in self.parts]
        known = aligned(Examples.open(context.store, self.gold).rows(["example_id"]), *found)
        return score_rows(self, context, (row for _, of_parts in known for row in of_parts if row is not None))
