"""`select`: decides whether a stage's labels are better than the previous ones, or a student better after fine-tuning.

The k students of two stages see the same rows, start from the same weights and differ only in their labels, so their
scores on the judging rows (which none of them trains on) show which labels are better. Fine-tuning on the labeled set
is judged in the same way: each fold of the set by a student that was fine-tuned on the other folds, against the student
before. The verdict also counts the whole labels that only one side got right, student i against student i, with
McNemar's p (see `mcnemar_of`). That is for the report and decides nothing.
"""

from retort.artifacts.scores import Scores
from retort.artifacts.verdicts import McNemarCounts, Selection, SelectionVerdict, write_verdict
from retort.config import Metric, Problem, SelectionConfig
from retort.metrics.comparison import Systems, compare_systems, mcnemar_of
from retort.problems import problem_for
from retort.records.base import ArtifactRef, Label
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput


class Select(Step):
    """Compare the students of two stages on the judging rows; the metric `accepted` is 1 or 0."""

    kind = "select"
    version = 3
    artifact = Selection

    problem: Problem
    metric: Metric
    selection: SelectionConfig
    resamples: int
    seed: int
    reigning: tuple[ArtifactRef, ...]
    """Scores of the earlier stage's students on the judging rows."""
    challenger: tuple[ArtifactRef, ...]
    """Scores of the later stage's students."""

    def run(self, context: StepContext) -> StepOutput:
        golds, old = _labels(context, self.reigning)
        _, new = _labels(context, self.challenger)
        problem = problem_for(self.problem)
        reigning, challenger = (Systems(problem, [self.metric], golds, labels) for labels in (old, new))
        comparison = compare_systems(reigning, challenger, self.metric, self.resamples, self.seed)
        accepted = bool(comparison.win_share >= self.selection.confidence)
        verdict = SelectionVerdict(
            **comparison._asdict(),
            metric=self.metric,
            accepted=accepted,
            n=len(golds),
            mcnemar=McNemarCounts(**mcnemar_of(reigning, challenger)._asdict()),
        )
        write_verdict(context.folder, verdict)
        metrics = {"accepted": float(accepted), "gain": comparison.gain, "win_share": comparison.win_share}
        return StepOutput(rows=len(golds), metrics=metrics)


def _labels(context: StepContext, refs: tuple[ArtifactRef, ...]) -> tuple[list[Label], list[list[Label | None]]]:
    """Return (gold labels of the judging rows, each student's labels) for one side."""
    tables = [list(Scores.open(context.store, ref).predictions(["gold", "predicted"])) for ref in refs]
    return [row["gold"] for row in tables[0]], [[row["predicted"] for row in rows] for rows in tables]
