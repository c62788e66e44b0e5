"""References to what a run of the soft-label recipe made."""

from pydantic import Field

from retort.records.base import ArtifactRef
from retort.records.result import Result


class SoftLabelResult(Result):
    """Everything that a run made. Test sets and arms are given by name."""

    train: ArtifactRef
    dev: ArtifactRef
    tests: dict[str, ArtifactRef]
    pool: ArtifactRef | None
    """Rows without gold labels, for the arm `with-pool`."""
    train_probabilities: ArtifactRef
    """Probabilities for each row from a teacher that was not trained on it."""
    pool_probabilities: ArtifactRef | None
    teacher: ArtifactRef | None
    """The fine-tuned teacher, trained on all training rows; None for other teachers."""
    small: tuple[ArtifactRef, ...]
    """Students of the arm `tinybert`, one per seed."""
    grids: dict[str, ArtifactRef]
    """By arm with a tiny student: the settings tried, and the students of the best one on the dev rows."""
    scores: dict[str, dict[str, ArtifactRef]]
    """Scores by arm (also `teacher`), then by rows: dev and each test set."""
    times: ArtifactRef
    """Latency and throughput."""
    final_scores: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Scores of the exported student by test set, if there is a registry to promote in."""

    @property
    def test_scores(self) -> tuple[ArtifactRef, ...]:
        return tuple(self.final_scores.values())

    def refs(self) -> list[ArtifactRef]:
        data = [self.train, self.dev, *self.tests.values(), self.pool]
        teachers = [self.train_probabilities, self.pool_probabilities, self.teacher, *self.small]
        scores = [ref for by_rows in self.scores.values() for ref in by_rows.values()]
        final = [self.times, *self.final_scores.values(), *self.challenge_refs]
        return self.unique([*data, *teachers, *self.grids.values(), self.final_student, *scores, *final])
