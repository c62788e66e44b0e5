"""Stage 0: the configured teacher labels the pool."""

from dataclasses import dataclass, field

from retort.config import EnsembleConfig, FinetunedConfig, MckdConfig, RecordedConfig
from retort.config.teachers import LlmTeacherConfig, Member
from retort.recipes.base import Do
from retort.recipes.mckd.steps import (
    cross_label,
    evaluate_labels,
    evaluate_own_labels,
    evaluate_student,
    label_by_llm,
    label_recorded,
    merge_teachers,
    train_student,
)
from retort.records.base import ArtifactRef
from retort.records.mckd import Data

STEP = "stage0/pseudolabels"


@dataclass(frozen=True)
class TeacherLabels:
    labels: ArtifactRef
    scores: ArtifactRef | None = None
    """Scores on the test rows, if the teacher can label them for free."""
    own_scores: ArtifactRef | None = None
    """Scores on the labeled set, each row labeled with the others as demonstrations. LLM teachers only."""
    member_scores: dict[str, ArtifactRef] = field(default_factory=dict)
    """Scores of an ensemble's members, see `MckdResult.member_scores`."""


def member_step(index: int) -> str:
    """The name of the step in which an ensemble's member labels the pool."""
    return f"stage0/teacher-{index}/pseudolabels"


async def teacher_labels(config: MckdConfig, data: Data, do: Do) -> TeacherLabels:
    """Run stage 0. An ensemble's members label one after another, since each may need the whole machine."""
    if not isinstance(config.teacher, EnsembleConfig):
        return await _labels_of(config, config.teacher, data, do, "teacher", STEP)
    members = [
        await _labels_of(config, member, data, do, f"teacher-{index}", member_step(index))
        for index, member in enumerate(config.teacher.members)
    ]
    merged = await do(merge_teachers(config, config.teacher, [member.labels for member in members], data))
    scores = {
        f"teacher-{index}": member.own_scores
        or await do(evaluate_labels(config, f"teacher-{index}/label-quality", member.labels, data.unlabeled))
        for index, member in enumerate(members)
    }
    all_scored = all(member.own_scores for member in members)
    own = await do(evaluate_own_labels(config, "teacher/labeled", merged, data.labeled)) if all_scored else None
    return TeacherLabels(merged, own_scores=own, member_scores=scores)


async def _labels_of(config: MckdConfig, teacher: Member, data: Data, do: Do, name: str, step: str) -> TeacherLabels:
    match teacher:
        case RecordedConfig():
            return TeacherLabels(await do(label_recorded(config, step, teacher, data.unlabeled)))
        case FinetunedConfig(training=training, min_success_ratio=least):
            student = await do(train_student(config, f"{name}/student", data.labeled, training=training))
            labels = await do(cross_label(config, step, student, data.unlabeled, min_success_ratio=least))
            return TeacherLabels(labels, await do(evaluate_student(config, f"{name}/test", student, data.test)))
        case LlmTeacherConfig():
            labels = await do(label_by_llm(config, step, teacher, data))
            own = await do(evaluate_own_labels(config, f"{name}/labeled", labels, data.labeled))
            return TeacherLabels(labels, own_scores=own)
