"""One Prefect task for each kind of stage. Each takes a stage and returns a reference to its artifact."""

import asyncio
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from retort.config.soft_label import Job
from retort.recipes.execute import open_store
from retort.records.base import ArtifactRef, Step, Verb
from retort.tracking.step import forget_if_gone
from tasks.perform import RETRIES, can_heal, perform

Outcome = ArtifactRef | State[ArtifactRef]

_ANY: dict[str, Any] = {
    "task_run_name": "{stage.name}",
    "cache_policy": NO_CACHE,  # the store is the cache, see tasks/perform.py
    "persist_result": False,
    "retry_condition_fn": can_heal,
    **RETRIES,
}


@task(name="ingest", **_ANY)
async def ingest(config: Job, stage: Step) -> Outcome:
    """Read a data source, check every row, and keep it with its gold labels apart."""
    return await perform(config, stage)


@task(name="pseudolabel", **_ANY)
async def pseudolabel(config: Job, stage: Step) -> Outcome:
    """The teacher's labels for the pool; what cannot be parsed is set aside."""
    return await perform(config, stage)


@task(name="train-student", tags=["student"], **_ANY)
async def train_student(config: Job, stage: Step) -> Outcome:
    """Train one student on its cells of the pool."""
    return await perform(config, stage)


@task(name="cross-label", tags=["student"], **_ANY)
async def cross_label(config: Job, stage: Step) -> Outcome:
    """Let a student label what it was not trained on."""
    return await perform(config, stage)


@task(name="merge-labels", **_ANY)
async def merge_labels(config: Job, stage: Step) -> Outcome:
    """Join the students' cross-labels into the pool's labels of the next stage."""
    return await perform(config, stage)


@task(name="evaluate", **_ANY)
async def evaluate(config: Job, stage: Step) -> Outcome:
    """Score a student, or a stage's labels, on gold-labelled rows."""
    return await perform(config, stage)


@task(name="select", **_ANY)
async def select(config: Job, stage: Step) -> Outcome:
    """Compare the students of two stages on the judging rows."""
    return await perform(config, stage)


@task(name="gate", **_ANY)
async def gate(config: Job, stage: Step) -> Outcome:
    """Whether the final student may become the champion."""
    return await perform(config, stage)


@task(name="report", **_ANY)
async def report(config: Job, stage: Step) -> Outcome:
    """Draw and write what the run did."""
    return await perform(config, stage)


@task(name="track", **_ANY)
async def track(config: Job, stage: Step) -> Outcome:
    """Bring MLflow up to date with the run's artifacts."""
    await asyncio.to_thread(forget_if_gone, open_store(config.store), stage)
    return await perform(config, stage)


@task(name="gather-probabilities", **_ANY)
async def gather_probabilities(config: Job, stage: Step) -> Outcome:
    """Join what a teacher says of each row, by the row's id and the classes' names."""
    return await perform(config, stage)


@task(name="train-tiny", **_ANY)
async def train_tiny(config: Job, stage: Step) -> Outcome:
    """Train every setting of an arm from the same seeds, side by side."""
    return await perform(config, stage)


@task(name="train-small", tags=["student"], **_ANY)
async def train_small(config: Job, stage: Step) -> Outcome:
    """Train an encoder of TinyBERT's size on the gold labels."""
    return await perform(config, stage)


@task(name="predict", **_ANY)
async def predict(config: Job, stage: Step) -> Outcome:
    """Let an arm's students, or a baseline, say what they think of rows."""
    return await perform(config, stage)


@task(name="score", **_ANY)
async def score(config: Job, stage: Step) -> Outcome:
    """Compare an arm's predictions with gold labels, over all its seeds."""
    return await perform(config, stage)


@task(name="time-students", **_ANY)
async def time_students(config: Job, stage: Step) -> Outcome:
    """Measure size, latency and throughput."""
    return await perform(config, stage)


@task(name="export-student", **_ANY)
async def export_student(config: Job, stage: Step) -> Outcome:
    """Choose the student on the dev rows, and write it as ONNX with its model card."""
    return await perform(config, stage)


@task(name="report-scores", **_ANY)
async def report_scores(config: Job, stage: Step) -> Outcome:
    """Draw and write what the run did."""
    return await perform(config, stage)


@task(name="track-scores", **_ANY)
async def track_scores(config: Job, stage: Step) -> Outcome:
    """Bring MLflow up to date with the run's artifacts."""
    await asyncio.to_thread(forget_if_gone, open_store(config.store), stage)
    return await perform(config, stage)


TASKS: dict[Verb, Task[[Job, Step], Any]] = {
    "ingest": ingest,
    "pseudolabel": pseudolabel,
    "train-student": train_student,
    "cross-label": cross_label,
    "merge-labels": merge_labels,
    "evaluate": evaluate,
    "select": select,
    "gate": gate,
    "report": report,
    "track": track,
    "gather-probabilities": gather_probabilities,
    "train-tiny": train_tiny,
    "train-small": train_small,
    "predict": predict,
    "score": score,
    "time-students": time_students,
    "export-student": export_student,
    "report-scores": report_scores,
    "track-scores": track_scores,
}
