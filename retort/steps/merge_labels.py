"""`merge-labels`: merges the students' cross-labels into the pool's labels for the next stage.

Each row has a label from every student that was not trained on it. If there are several (disjoint cells, k > 2), the
label is decided on the mean of their probabilities.
"""

from collections.abc import Iterator

import numpy as np

from retort.artifacts.pseudolabels import ROWS, Pseudolabels
from retort.config import MergeConfig, Problem
from retort.errors import StageFailed
from retort.io.parquet import PSEUDOLABELS, Row, write_rows
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput


class MergeLabels(Step):
    """Merge the students' cross-labels into the pool's labels for the next stage."""

    kind = "merge-labels"
    version = 1
    artifact = Pseudolabels

    problem: Problem
    merge: MergeConfig
    soft: bool
    """Whether the rows keep probabilities."""
    previous: ArtifactRef
    cross_labels: tuple[ArtifactRef, ...]

    def run(self, context: StepContext) -> StepOutput:
        changed = kept = 0
        problem, merge = problem_for(self.problem), self.merge

        def rows() -> Iterator[Row]:
            nonlocal changed, kept
            for old, votes in self._aligned(context):
                new = self._combined(problem, old, votes)
                if merge.kind == "when-confident" and new["confidence"] < merge.threshold:
                    kept += 1
                    yield old
                    continue
                changed += new["label"] != old["label"]
                yield new

        count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        metrics = {"changed_share": changed / count if count else 0.0}
        return StepOutput(rows=count, counts={"changed": changed, "kept": kept}, metrics=metrics)

    def _aligned(self, context: StepContext) -> Iterator[tuple[Row, list[Row]]]:
        """Yield each row of the previous labels with its cross-labels. All files are in the order of the pool, so one
        pass is enough."""
        readers = [Pseudolabels.open(context.store, ref).rows() for ref in self.cross_labels]
        heads = [next(reader, None) for reader in readers]
        for old in Pseudolabels.open(context.store, self.previous).rows():
            votes = []
            for index, head in enumerate(heads):
                if head is not None and head["example_id"] == old["example_id"]:
                    votes.append(head)
                    heads[index] = next(readers[index], None)
            if not votes:
                raise StageFailed(f"{self.name}: no student labeled '{old['example_id']}'")
            yield old, votes

    def _combined(self, problem: ProblemKind, old: Row, votes: list[Row]) -> Row:
        if len(votes) == 1:
            return {**votes[0], "probabilities": votes[0]["probabilities"] if self.soft else None}
        shape = (-1, len(problem.classes))
        mean = np.mean([np.asarray(vote["probabilities"], dtype=np.float64).reshape(shape) for vote in votes], axis=0)
        label, confidence = problem.decide(old["text"], mean)
        return {
            "example_id": old["example_id"],
            "text": old["text"],
            "label": label,
            "confidence": confidence,
            "labeler": "+".join(vote["labeler"] for vote in votes),
            "probabilities": mean.astype(np.float16).ravel() if self.soft else None,
        }
