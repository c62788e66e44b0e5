"""`merge-labels`: merges the students' cross-labels into the pool's labels for the next stage.

Each row has a label from every student that was not trained on it, also one that had no label before. If there are
several (disjoint cells, k > 2), the label is decided on the mean of their probabilities; numbers on a scale are
averaged. A row that no student could label keeps its old label, if it had one; a row that keeps its label, or gets the
same again, keeps the teacher's rationale.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import RATIONALE_ROWS, ROWS, Pseudolabels
from retort.config import MergeConfig, Problem
from retort.io.parquet import PSEUDOLABELS, RATIONALES, Row, RowWriter, aligned, write_rows
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.problems.base import is_scale
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput


class MergeLabels(Step):
    """Merge the students' cross-labels into the pool's labels for the next stage."""

    kind = "merge-labels"
    version = 2
    artifact = Pseudolabels

    problem: Problem
    merge: MergeConfig
    soft: bool
    """Whether the rows keep probabilities."""
    pool: ArtifactRef
    previous: ArtifactRef
    cross_labels: tuple[ArtifactRef, ...]

    def run(self, context: StepContext) -> StepOutput:
        counts: Counter[str] = Counter(changed=0, kept=0)
        problem, merge = problem_for(self.problem), self.merge

        def rows() -> Iterator[Row]:
            for row, old, rationale, votes in self._aligned(context):
                new = self._combined(problem, row, votes) if votes else None
                unsure = new and merge.kind == "when-confident" and new["confidence"] < merge.threshold
                if rationale and old and (new is None or unsure or new["label"] == old["label"]):
                    rationales.write(rationale)
                if new is None or (old and unsure):
                    counts["kept"] += old is not None
                    counts["unlabeled"] += old is None
                    yield from [old] if old else []
                    continue
                counts["changed" if old else "new"] += old is None or new["label"] != old["label"]
                yield new

        with RowWriter(context.folder / RATIONALE_ROWS, RATIONALES) as rationales:
            count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        metrics = {"changed_share": counts["changed"] / count if count else 0.0}
        return StepOutput(rows=count, counts=dict(counts), metrics=metrics)

    def _aligned(self, context: StepContext) -> Iterator[tuple[Row, Row | None, Row | None, list[Row]]]:
        """Yield each row of the pool with its previous label and the rationale of that, if it has them, and its
        cross-labels. All files are in the order of the pool."""
        previous, *cross_labels = (Pseudolabels.open(context.store, ref) for ref in (self.previous, *self.cross_labels))
        pool = Examples.open(context.store, self.pool).rows(["example_id", "text"])
        readers = (previous.rows(), previous.rationales(), *(one.rows() for one in cross_labels))
        for row, (old, rationale, *votes) in aligned(pool, *readers):
            yield row, old, rationale, [vote for vote in votes if vote is not None]

    def _combined(self, problem: ProblemKind, row: Row, votes: list[Row]) -> Row:
        if len(votes) == 1:
            return {**votes[0], "probabilities": votes[0]["probabilities"] if self.soft else None}
        shape = (-1, len(problem.classes))
        known = [vote["probabilities"] for vote in votes if vote["probabilities"] is not None]
        mean = np.mean([np.asarray(one, dtype=np.float64).reshape(shape) for one in known], axis=0) if known else None
        if is_scale(problem):
            label, confidence = problem.merge([vote["label"] for vote in votes], [1.0] * len(votes))
        else:
            assert mean is not None, "only numbers are merged without probabilities"
            label, confidence = problem.decide(row["text"], mean)
        return {
            "example_id": row["example_id"],
            "text": row["text"],
            "label": label,
            "confidence": confidence,
            "labeler": "+".join(vote["labeler"] for vote in votes),
            "probabilities": mean.astype(np.float16).ravel() if self.soft and mean is not None else None,
        }
