"""References to what a run of the MCKD recipe made."""

from pydantic import Field

from retort.records.base import ArtifactRef, Record
from retort.records.result import Result


class Data(Record):
    """The four roles of gold and unlabeled rows, ingested."""

    labeled: ArtifactRef
    unlabeled: ArtifactRef
    test: ArtifactRef
    judge: ArtifactRef
    """The labeled set, or the dev set if the config says so."""


class StageResult(Record):
    """Stage s: k students trained on the labels of stage s-1, and their scores."""

    stage: int
    students: tuple[ArtifactRef, ...]
    test_scores: tuple[ArtifactRef, ...]
    judge_scores: tuple[ArtifactRef, ...]
    selection: ArtifactRef | None = None
    """The comparison with the previous stage; None for the first stage, or if labels are accepted without proof."""


class FineTuning(Record):
    """What fine-tuning on the labeled set made, apart from the final student."""

    stage: int
    """The stage whose students were fine-tuned, the last that was kept."""
    selection: ArtifactRef | None
    """The comparison before and after on the judging rows; None if fine-tuning needed no proof."""
    accepted: bool
    students: tuple[ArtifactRef, ...] = ()
    """The fine-tuned students that relabeled the pool last; empty if it was not relabeled."""
    test_scores: tuple[ArtifactRef, ...] = ()
    labels: ArtifactRef | None = None
    """Their labels, on which the final student is trained; None if it is trained on those of `kept_stage - 1`."""
    label_scores: ArtifactRef | None = None
    """Scores of these labels against the pool's own gold labels."""


class MckdResult(Result):
    """Everything that a run made."""

    data: Data
    labels: tuple[ArtifactRef, ...]
    """Labels of stage 0 (the teacher's), 1, ...: the last ones may have been rejected."""
    label_scores: tuple[ArtifactRef, ...] = ()
    """Scores of each of `labels` against the pool's own gold labels; without rows if the pool has none."""
    teacher_scores: ArtifactRef | None = None
    """The teacher's scores on the test rows, if it can label them for free."""
    teacher_own_scores: ArtifactRef | None = None
    """Scores of an LLM teacher on the labeled set, each row labeled with the others as demonstrations."""
    member_scores: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Scores of an ensemble's members by `teacher-0` and so on, on the labeled set or else on the pool's own gold
    labels."""
    rounds: tuple[StageResult, ...] = ()
    kept_stage: int = 1
    """The final student is trained on the labels of stage `kept_stage - 1`, unless fine-tuned students improved them; 1
    is vanilla distillation."""
    fine_tuning: FineTuning | None = None
    """None if it was not asked for."""
    final_scores: ArtifactRef
    hygiene: ArtifactRef | None = None
    """Near-duplicates, leakage, suspicious labels and drift."""
    baselines: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Scores on the test rows, by the baseline's name."""

    @property
    def test_scores(self) -> tuple[ArtifactRef, ...]:
        return (self.final_scores,)

    def refs(self) -> list[ArtifactRef]:
        rounds = [ref for r in self.rounds for ref in (*r.students, *r.test_scores, *r.judge_scores, r.selection)]
        data = [self.data.labeled, self.data.unlabeled, self.data.test, self.data.judge]
        final = [self.final_student, self.final_scores, self.hygiene, *self.baselines.values(), *self.challenge_refs]
        teachers = [self.teacher_scores, self.teacher_own_scores, *self.member_scores.values()]
        tuning = self.fine_tuning
        tuned = [*tuning.students, *tuning.test_scores, tuning.labels, tuning.label_scores] if tuning else []
        tuned += [tuning.selection] if tuning else []
        return self.unique([*data, *self.labels, *self.label_scores, *teachers, *rounds, *tuned, *final])
