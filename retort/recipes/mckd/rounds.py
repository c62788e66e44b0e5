"""A round of a stage: k students on their cells of the pool, their scores, and the labels that they give it."""

from retort.config import MckdConfig
from retort.recipes.base import Do, together
from retort.recipes.mckd.steps import (
    cross_label,
    evaluate_student,
    merge_labels,
    seen_cells,
    train_student,
    unseen_cells,
)
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, StageResult


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
                stage=stage,
                cells=seen_cells(config, index),
                index=index,
                siblings=method.partitions,
                labeled=data.labeled,
            )
        )
        for index in range(method.partitions)
    )


async def relabel(
    config: MckdConfig, data: Data, run: str, students: tuple[ArtifactRef, ...], previous: ArtifactRef, do: Do
) -> ArtifactRef:
    """Relabel the whole pool, rows without a label too: each student labels only what it was not trained on."""
    method = config.method
    several_votes = method.scheme == "disjoint" and method.partitions > 2
    cross_labels = await together(
        do(
            cross_label(
                config,
                f"{run}/cross-labels-{index}",
                student,
                data.unlabeled,
                cells=unseen_cells(config, index),
                siblings=method.partitions,
                probabilities=config.cross_labels == "soft" or several_votes,
            )
        )
        for index, student in enumerate(students)
    )
    return await do(merge_labels(config, f"{run}/pseudolabels", data, previous, cross_labels))


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
