"""A round of a stage: k students on their cells of the pool, their scores, and the labels that they give it."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from retort.config import MckdConfig
from retort.recipes.base import Aside, Do, later, together
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


@dataclass(frozen=True)
class Round:
    """A stage's students, whose scores may still be on their way."""

    stage: int
    students: tuple[ArtifactRef, ...]
    judge_scores: Awaitable[tuple[ArtifactRef, ...]]
    """On the rows that judge stages."""
    test_scores: Awaitable[tuple[ArtifactRef, ...]]
    """On the test rows, which decide nothing."""
    selection: ArtifactRef | None = None

    async def result(self) -> StageResult:
        return StageResult(
            stage=self.stage,
            students=self.students,
            judge_scores=await self.judge_scores,
            test_scores=await self.test_scores,
            selection=self.selection,
        )


async def begin_round(
    config: MckdConfig, data: Data, stage: int, students: tuple[ArtifactRef, ...], do: Do, aside: Aside
) -> Round:
    """Begin to score a stage's students."""
    judge, test = [
        await aside.begin(evaluate_students(config, f"stage{stage}/{title}", students, rows, scored_by))
        for title, rows, scored_by in (("judge", data.judge, do), ("test", data.test, later(do)))
    ]
    return Round(stage, students, judge, test)


async def evaluate_students(
    config: MckdConfig, title: str, students: Sequence[ArtifactRef], rows: ArtifactRef, do: Do
) -> tuple[ArtifactRef, ...]:
    """The scores of each student. `title` begins the steps' names."""
    return await together(
        do(evaluate_student(config, f"{title}-{index}", student, rows, siblings=len(students)))
        for index, student in enumerate(students)
    )
