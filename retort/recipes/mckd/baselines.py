"""Baselines that an honest comparison needs. Steps that they have in common with the main run are shared."""

import math
from collections.abc import Awaitable, Callable

from retort.config import FINETUNED_TRAINING, Baseline, FinetunedConfig, MckdConfig, TrainingConfig
from retort.recipes.base import Do, together
from retort.recipes.mckd.rounds import train_on_partitions
from retort.recipes.mckd.steps import (
    cross_label,
    evaluate_student,
    fine_tune,
    gold_training,
    merge_labels,
    seen_cells,
    train_student,
    unseen_cells,
)
from retort.records.base import ArtifactRef
from retort.records.mckd import Data
from retort.steps.train_student import TrainStudent


async def compare_baselines(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> dict[str, ArtifactRef]:
    """Train each baseline in the config, on the teacher's `labels` if it has any. Returns their scores on the test
    rows."""

    async def scored(name: Baseline) -> ArtifactRef:
        student = await _TRAINERS[name](config, data, labels, do)
        return await do(evaluate_student(config, f"{name}/test", student, data.test))

    scores = await together(scored(name) for name in config.baselines)
    return dict(zip(config.baselines, scores, strict=True))


async def vanilla_kd(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """One student trained on the teacher's labels for the whole pool."""
    return await do(vanilla(config, "vanilla-kd/student", data, labels))


def vanilla(
    config: MckdConfig, name: str, data: Data, labels: ArtifactRef, training: TrainingConfig | None = None
) -> TrainStudent:
    return train_student(config, name, labels, stage=1, training=training, labeled=data.labeled)


async def vanilla_fine_tuned(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """Vanilla KD, then fine-tuned on the labeled set: what the labeled rows give without relabeling."""
    student = await vanilla_kd(config, data, labels, do)
    return await do(fine_tune(config, "vanilla-fine-tuned/student", student, data))


async def compute_matched_kd(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """Vanilla KD with as many epochs as all stages together."""
    training, stages = config.student.training, config.method.stages
    longer = {"epochs": training.epochs * stages, "min_updates": training.min_updates * stages}
    return await do(vanilla(config, "compute-matched-kd/student", data, labels, training.model_copy(update=longer)))


async def same_partition(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """MCKD without cross-labeling: each student relabels the very rows that it was trained on."""
    method, run = config.method, "same-partition/"
    cells = [seen_cells(config, index) for index in range(method.partitions)]
    if method.scheme == "leave-one-out":  # each row is relabeled by one of the students that saw it
        cells = [unseen_cells(config, (index + 1) % method.partitions) for index in range(method.partitions)]
    for stage in range(1, method.stages):
        students = await train_on_partitions(config, data, stage, labels, do, run)
        own = await together(
            do(
                cross_label(
                    config,
                    f"{run}stage{stage}/labels-{index}",
                    student,
                    data.unlabeled,
                    cells=cells[index],
                    siblings=method.partitions,
                    probabilities=config.cross_labels == "soft",
                )
            )
            for index, student in enumerate(students)
        )
        labels = await do(merge_labels(config, f"{run}stage{stage}/pseudolabels", data, labels, own))
    return await do(train_student(config, f"{run}student", labels, stage=method.stages, labeled=data.labeled))


async def self_relabelling(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """One student trained on the whole pool relabels the whole pool, once per stage."""
    soft = config.cross_labels == "soft"
    for stage in range(1, config.method.stages):
        name = f"self-relabelling/stage{stage}"
        student = await do(train_student(config, f"{name}/student", labels, stage=stage, labeled=data.labeled))
        labels = await do(cross_label(config, f"{name}/pseudolabels", student, data.unlabeled, probabilities=soft))
    step = train_student(config, "self-relabelling/student", labels, stage=config.method.stages, labeled=data.labeled)
    return await do(step)


async def early_stopped(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """A student that stops after a sixth of the epochs, before it memorizes wrong labels (arXiv 2312.10185), relabels
    its own training rows; the final student is trained on those labels."""
    training, soft = config.student.training, config.cross_labels == "soft"
    brief = {"epochs": math.ceil(training.epochs / 6), "min_updates": training.min_updates // 6, "stopping": None}
    first = await do(vanilla(config, "early-stopped/first", data, labels, training.model_copy(update=brief)))
    labels = await do(cross_label(config, "early-stopped/pseudolabels", first, data.unlabeled, probabilities=soft))
    return await do(train_student(config, "early-stopped/student", labels, stage=2, labeled=data.labeled))


async def supervised(config: MckdConfig, data: Data, labels: ArtifactRef, do: Do) -> ArtifactRef:
    """One student trained on the labeled set alone, for as many epochs as a fine-tuned teacher."""
    teacher, epochs = config.teacher, FINETUNED_TRAINING.epochs
    training = teacher.training if isinstance(teacher, FinetunedConfig) else gold_training(config, epochs)
    return await do(train_student(config, "supervised/student", data.labeled, training=training))


_TRAINERS: dict[Baseline, Callable[[MckdConfig, Data, ArtifactRef, Do], Awaitable[ArtifactRef]]] = {
    "vanilla-kd": vanilla_kd,
    "vanilla-fine-tuned": vanilla_fine_tuned,
    "compute-matched-kd": compute_matched_kd,
    "same-partition": same_partition,
    "self-relabelling": self_relabelling,
    "early-stopped": early_stopped,
    "supervised": supervised,
}
