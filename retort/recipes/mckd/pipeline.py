"""Multistage collaborative knowledge distillation (arXiv 2311.08640, section 3), on one page.

The algorithm builds the steps, in order; `do` carries them out (see `Recipe`).
"""

from retort.config import MckdConfig
from retort.data.partitions import label_cells, train_cells
from retort.recipes.base import Do, together
from retort.recipes.checks import check_champion
from retort.recipes.mckd.steps import (
    Role,
    cross_label,
    evaluate_labels,
    evaluate_student,
    ingest,
    merge_labels,
    select,
    start_from,
    train_student,
)
from retort.recipes.mckd.teacher import teacher_labels
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult, StageResult
from retort.records.result import Champion
from retort.steps.gate import check_slices


async def ingest_data(config: MckdConfig, do: Do) -> Data:
    """Ingest the rows of every role."""
    roles: list[Role] = ["labeled", "unlabeled", "test"]
    roles += ["dev"] if config.evaluation.judge == "dev" else []
    refs = dict(zip(roles, await together(do(ingest(config, role)) for role in roles), strict=True))
    return Data(
        labeled=refs["labeled"],
        unlabeled=refs["unlabeled"],
        test=refs["test"],
        judge=refs.get("dev", refs["labeled"]),
    )


async def distill(config: MckdConfig, data: Data, do: Do, champion: Champion | None = None) -> MckdResult:
    """Distill from the teacher's labels to the final student, which starts from the champion if `warm_start` is set.

    Raises ConfigError before making anything if the champion solves another problem, or if the gate has a slice for a
    class that does not exist.
    """
    check_slices(config.problem, config.gate)
    check_champion(config.name, config.problem, champion)
    method, selecting = config.method, config.selection.kind == "better"
    teacher = await teacher_labels(config, data, do)
    labels = [teacher.labels]
    rounds: list[StageResult] = []
    kept_stage = method.stages

    # The last stage trains only the final student; when selecting, a round of k students there tests its labels first.
    for stage in range(1, method.stages + (selecting and method.stages > 1)):
        students = await train_on_partitions(config, data, stage, labels[-1], do)
        challenger = await evaluate_round(config, data, stage, students, do)
        if selecting and rounds:
            challenger, accepted = await prove_better(config, rounds[-1], challenger, do)
            rounds.append(challenger)
            if not accepted:
                kept_stage = stage - 1
                break
        else:
            rounds.append(challenger)
        if stage < method.stages:
            labels.append(await relabel(config, stage, students, labels[-1], do))

    final = await train_final(config, data, kept_stage, labels[kept_stage - 1], champion, do)
    return MckdResult(
        data=data,
        labels=tuple(labels),
        label_scores=await score_labels(config, data, labels, do),
        teacher_scores=teacher.scores,
        teacher_own_scores=teacher.own_scores,
        member_scores=teacher.member_scores,
        rounds=tuple(rounds),
        kept_stage=kept_stage,
        final_student=final,
        final_scores=await do(evaluate_student(config, "final/test", final, data.test)),
    )


async def train_final(
    config: MckdConfig, data: Data, kept_stage: int, labels: ArtifactRef, champion: Champion | None, do: Do
) -> ArtifactRef:
    """Train on the whole pool. This is the only student that may start from the champion's weights."""
    soft, name = is_soft(config, kept_stage), "final/student"
    step = train_student(config, name, labels, soft=soft, labeled=data.labeled)
    if champion and config.student.warm_start:
        step = step.model_copy(update={"start": start_from(step, champion)})
    return await do(step)


async def train_on_partitions(
    config: MckdConfig, data: Data, stage: int, labels: ArtifactRef, do: Do, run: str = ""
) -> tuple[ArtifactRef, ...]:
    """Train k fresh students, each on its own cells of the pool. `run` prefixes a baseline's step names:
    `same-partition/`."""
    method = config.method
    return await together(
        do(
            train_student(
                config,
                f"{run}stage{stage}/student-{index}",
                labels,
                cells=train_cells(method.scheme, method.partitions, index),
                index=index,
                siblings=method.partitions,
                soft=is_soft(config, stage),
                labeled=data.labeled,
            )
        )
        for index in range(method.partitions)
    )


async def relabel(
    config: MckdConfig, stage: int, students: tuple[ArtifactRef, ...], previous: ArtifactRef, do: Do
) -> ArtifactRef:
    """Relabel the pool: each student labels only the rows that it was not trained on."""
    method, soft = config.method, config.method.cross_labels == "soft"
    several_votes = method.scheme == "disjoint" and method.partitions > 2
    cross_labels = await together(
        do(
            cross_label(
                config,
                f"stage{stage}/cross-labels-{index}",
                student,
                previous,
                cells=label_cells(method.scheme, method.partitions, index),
                siblings=method.partitions,
                probabilities=soft or several_votes,
            )
        )
        for index, student in enumerate(students)
    )
    return await do(merge_labels(config, f"stage{stage}/pseudolabels", previous, cross_labels, soft=soft))


async def evaluate_round(
    config: MckdConfig, data: Data, stage: int, students: tuple[ArtifactRef, ...], do: Do
) -> StageResult:
    """Score each student on the rows that judge stages, and on the test rows, which decide nothing."""

    k = len(students)
    scores = await together(
        do(evaluate_student(config, f"stage{stage}/{title}-{index}", student, rows, siblings=k))
        for title, rows in (("judge", data.judge), ("test", data.test))
        for index, student in enumerate(students)
    )
    return StageResult(stage=stage, students=students, judge_scores=scores[:k], test_scores=scores[k:])


async def prove_better(
    config: MckdConfig, reigning: StageResult, challenger: StageResult, do: Do
) -> tuple[StageResult, bool]:
    """Test whether students trained on the same rows are better with the newer labels. Returns (challenger with its
    verdict, whether it was accepted)."""
    name = f"stage{challenger.stage}/selection"
    verdict = await do(select(config, name, reigning.judge_scores, challenger.judge_scores))
    # A plan cannot know the verdict yet, so it continues as if the labels were accepted.
    return challenger.model_copy(update={"selection": verdict}), verdict.metrics.get("accepted", 1.0) == 1.0


async def score_labels(config: MckdConfig, data: Data, labels: list[ArtifactRef], do: Do) -> tuple[ArtifactRef, ...]:
    """Score every stage's labels against the pool's own gold labels, if it has any. For the report only."""
    return await together(
        do(evaluate_labels(config, f"stage{stage}/label-quality", ref, data.unlabeled))
        for stage, ref in enumerate(labels)
    )


def is_soft(config: MckdConfig, stage: int) -> bool:
    """Whether a stage trains on probabilities: the teacher's in stage 1, the students' in later stages."""
    return config.method.cross_labels == "soft" if stage > 1 else config.has_soft_teacher
