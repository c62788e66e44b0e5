"""The end of a run: fine-tuning on the labeled set, if it proves better, and the final student.

The labeled rows are few but right, and a student that has learned the pattern of thousands of pseudolabels needs few
rows to unlearn its teacher's habits. Mixed into the pseudolabels they are drowned, so they come last.

No student of a stage is trained on the labeled set, so it judges the stages fairly. The labels of a fine-tuned student
are made with the set, so it cannot judge what is trained on them: only the last relabeling is by fine-tuned students,
and each fold of the set is judged by a student that was fine-tuned on the other folds.
"""

from collections.abc import Sequence

from retort.config import MckdConfig
from retort.recipes.base import Aside, Do, later, together
from retort.recipes.mckd.rounds import Round, evaluate_students, relabel
from retort.recipes.mckd.steps import (
    cross_validate,
    evaluate_labels,
    evaluate_student,
    fine_tune,
    gather_folds,
    is_accepted,
    select_fine_tuning,
    start_from,
    train_student,
)
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, FineTuning
from retort.records.result import Champion
from retort.steps.train_student import TrainStudent

RUN, FINAL, BEFORE = "fine-tuning", "final/student", "final/before-fine-tuning"


async def finish(
    config: MckdConfig,
    data: Data,
    rounds: Sequence[Round],
    kept_stage: int,
    labels: ArtifactRef,
    champion: Champion | None,
    do: Do,
) -> tuple[FineTuning | None, ArtifactRef]:
    """Train the final student on `labels`, those of stage `kept_stage - 1`, and fine-tune it if that proves better. A
    relabeling that proved better is then done again by fine-tuned students. Returns (what fine-tuning made, the final
    student)."""

    async def trained(name: str, labels: ArtifactRef) -> ArtifactRef:
        return await do(final_step(config, name, data, kept_stage, labels, champion))

    if config.fine_tuning.kind == "never":
        return None, await trained(FINAL, labels)
    stage = 1
    if rounds:
        last = rounds[min(kept_stage, len(rounds)) - 1]
        stage, students, scores = last.stage, last.students, (await last.judge_scores)[0]
    else:
        # Never from the champion: it was fine-tuned on the rows that judge here.
        students = (await do(final_step(config, f"{RUN}/student", data, kept_stage, labels, None)),)
        scores = await do(evaluate_student(config, f"{RUN}/before", students[0], data.judge))
    tuning = await prove(config, data, stage, students, scores, do)
    if not tuning.accepted:
        return tuning, await trained(FINAL, labels)
    if kept_stage == 1:
        return tuning, await do(fine_tune(config, FINAL, await trained(BEFORE, labels), data))
    async with Aside() as aside:
        tuned = await fine_tune_all(config, data, students, do)
        testing = await aside.begin(evaluate_students(config, f"{RUN}/test", tuned, data.test, later(do)))
        improved = await relabel(config, data, RUN, tuned, labels, do)
        quality = evaluate_labels(config, f"{RUN}/label-quality", improved, data.unlabeled)
        scoring = await aside.begin(later(do)(quality))
        final = await do(fine_tune(config, FINAL, await trained(BEFORE, improved), data))
        update = {"students": tuned, "labels": improved, "test_scores": await testing}
        return tuning.model_copy(update={**update, "label_scores": await scoring}), final


def final_step(
    config: MckdConfig, name: str, data: Data, kept_stage: int, labels: ArtifactRef, champion: Champion | None
) -> TrainStudent:
    """Train on the whole pool. This is the only student that may start from the champion's weights."""
    step = train_student(config, name, labels, stage=kept_stage, labeled=data.labeled)
    if champion and config.student.warm_start:
        step = step.model_copy(update={"start": start_from(step, champion)})
    return step


async def prove(
    config: MckdConfig, data: Data, stage: int, students: Sequence[ArtifactRef], scores: ArtifactRef, do: Do
) -> FineTuning:
    """Test on the judging rows whether fine-tuning makes a stage's first student better, which has the `scores`
    there."""
    if config.fine_tuning.kind == "always":
        return FineTuning(stage=stage, selection=None, accepted=True)
    if config.evaluation.judge == "dev":
        tuned = await do(fine_tune(config, f"{RUN}/judged", students[0], data))
        judged = await do(evaluate_student(config, f"{RUN}/judge", tuned, data.judge))
    else:
        judged = await cross_validated(config, data, students, do)
    verdict = await do(select_fine_tuning(config, f"{RUN}/selection", scores, judged))
    return FineTuning(stage=stage, selection=verdict, accepted=is_accepted(verdict))


async def cross_validated(config: MckdConfig, data: Data, students: Sequence[ArtifactRef], do: Do) -> ArtifactRef:
    """The scores that a stage's first student would have on the labeled set, each fold's after it was fine-tuned on the
    others. Like the stage's students, as many trainings go on side by side."""
    size = min(len(students), config.fine_tuning.folds)
    parts = await together(
        do(cross_validate(config, f"{RUN}/judge-{part}", students[0], data, part=part, parts=size))
        for part in range(size)
    )
    return await do(gather_folds(config, f"{RUN}/judge", parts, data))


async def fine_tune_all(
    config: MckdConfig, data: Data, students: Sequence[ArtifactRef], do: Do
) -> tuple[ArtifactRef, ...]:
    """Fine-tune a stage's students on the whole labeled set, to relabel the pool by them."""
    return await together(
        do(fine_tune(config, f"{RUN}/student-{index}", student, data, index=index, siblings=len(students)))
        for index, student in enumerate(students)
    )
