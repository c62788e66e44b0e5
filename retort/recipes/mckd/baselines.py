"""Baselines that an honest comparison needs. Steps that they have in common with the main run are shared."""

import math
from collections.abc import Awaitable, Callable

from retort.config import Baseline, MckdConfig
from retort.data.partitions import train_cells
from retort.recipes.base import Do, together
from retort.recipes.mckd.pipeline import is_soft, train_on_partitions
from retort.recipes.mckd.steps import cross_label, evaluate_student, merge_labels, train_student
from retort.recipes.mckd.teacher import supervised_training
from retort.records.base import ArtifactRef
from retort.records.mckd import MckdResult


async def compare_baselines(config: MckdConfig, result: MckdResult, do: Do) -> MckdResult:
    """Train each baseline in the config and score it on the test rows."""
    scores: dict[str, ArtifactRef] = {}
    for name in config.baselines:
        student = await _TRAINERS[name](config, result, do)
        scores[name] = await do(evaluate_student(config, f"{name}/test", student, result.data.test))
    return result.model_copy(update={"baselines": scores})


async def vanilla_kd(config: MckdConfig, result: MckdResult, do: Do) -> ArtifactRef:
    """One student trained on the teacher's labels for the whole pool."""
    labels, soft = result.labels[0], is_soft(config, 1)
    return await do(train_student(config, "vanilla-kd/student", labels, soft=soft, labeled=result.data.labeled))


async def compute_matched_kd(config: MckdConfig, result: MckdResult, do: Do) -> ArtifactRef:
    """Vanilla KD with as many epochs as all stages together."""
    training = config.student.training
    longer = training.model_copy(update={"epochs": training.epochs * config.method.stages})
    labels, soft, name = result.labels[0], is_soft(config, 1), "compute-matched-kd/student"
    step = train_student(config, name, labels, training=longer, soft=soft, labeled=result.data.labeled)
    return await do(step)


async def same_partition(config: MckdConfig, result: MckdResult, do: Do) -> ArtifactRef:
    """MCKD without cross-labeling: each student relabels the very rows that it was trained on."""
    method, labels, run = config.method, result.labels[0], "same-partition/"
    soft = method.cross_labels == "soft"
    cells = [train_cells(method.scheme, method.partitions, index) for index in range(method.partitions)]
    if method.scheme == "leave-one-out":  # each row is relabeled by one of the students that saw it
        cells = [((index + 1) % method.partitions,) for index in range(method.partitions)]
    for stage in range(1, method.stages):
        students = await train_on_partitions(config, result.data, stage, labels, do, run)
        own = await together(
            do(
                cross_label(
                    config,
                    f"{run}stage{stage}/labels-{index}",
                    student,
                    labels,
                    cells=cells[index],
                    siblings=method.partitions,
                    probabilities=soft,
                )
            )
            for index, student in enumerate(students)
        )
        labels = await do(merge_labels(config, f"{run}stage{stage}/pseudolabels", labels, own, soft=soft))
    labeled, is_last_soft = result.data.labeled, is_soft(config, method.stages)
    return await do(train_student(config, f"{run}student", labels, soft=is_last_soft, labeled=labeled))


async def self_relabelling(config: MckdConfig, result: MckdResult, do: Do) -> ArtifactRef:
    """One student trained on the whole pool relabels the whole pool, once per stage."""
    labels, labeled, soft = result.labels[0], result.data.labeled, config.method.cross_labels == "soft"
    for stage in range(1, config.method.stages):
        name, on_soft = f"self-relabelling/stage{stage}", is_soft(config, stage)
        student = await do(train_student(config, f"{name}/student", labels, soft=on_soft, labeled=labeled))
        labels = await do(cross_label(config, f"{name}/pseudolabels", student, labels, probabilities=soft))
    on_soft = is_soft(config, config.method.stages)
    return await do(train_student(config, "self-relabelling/student", labels, soft=on_soft, labeled=labeled))


async def early_stopped(config: MckdConfig, result: MckdResult, do: Do) -> ArtifactRef:
    """A student that stops after a sixth of the epochs, before it memorizes wrong labels (arXiv 2312.10185), relabels
    its own training rows; the final student is trained on those labels."""
    training = config.student.training
    brief = training.model_copy(update={"epochs": math.ceil(training.epochs / 6), "stopping": None})
    labels, labeled, soft = result.labels[0], result.data.labeled, is_soft(config, 1)
    first = await do(train_student(config, "early-stopped/first", labels, training=brief, soft=soft))
    soft = is_soft(config, 2)
    labels = await do(cross_label(config, "early-stopped/pseudolabels", first, labels, probabilities=soft))
    return await do(train_student(config, "early-stopped/student", labels, soft=soft, labeled=labeled))


async def supervised(config: MckdConfig, result: MckdResult, do: Do) -> ArtifactRef:
    """One student trained on the labeled set alone."""
    training = supervised_training(config)
    return await do(train_student(config, "supervised/student", result.data.labeled, training=training))


_TRAINERS: dict[Baseline, Callable[[MckdConfig, MckdResult, Do], Awaitable[ArtifactRef]]] = {
    "vanilla-kd": vanilla_kd,
    "compute-matched-kd": compute_matched_kd,
    "same-partition": same_partition,
    "self-relabelling": self_relabelling,
    "early-stopped": early_stopped,
    "supervised": supervised,
}
