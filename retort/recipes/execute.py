"""One call that turns a stage into an artifact: fetch inputs, make, publish. It runs in a supervised child."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from retort.config import StoreConfig, expand
from retort.config.soft_label import Job
from retort.recipes.mckd.teacher import make_pseudolabels
from retort.records.base import ArtifactRef, Step, Verb
from retort.report.soft_label.step import make_score_report
from retort.report.step import make_report
from retort.steps.context import Progress, StepContext
from retort.steps.cross_label import make_cross_labels
from retort.steps.evaluate import make_scores
from retort.steps.export_student import make_export
from retort.steps.gate import make_gate
from retort.steps.gather_probabilities import make_probabilities
from retort.steps.ingest import make_examples
from retort.steps.merge_labels import make_merged_labels
from retort.steps.predict import make_predictions
from retort.steps.score_predictions import make_arm_scores
from retort.steps.select import make_selection
from retort.steps.time_students import make_times
from retort.steps.train_grid import make_grid
from retort.steps.train_student import make_student
from retort.steps.train_tinybert import make_small
from retort.store import StepOutput, Store
from retort.tracking.soft_label_step import make_score_tracking
from retort.tracking.step import make_tracking

MAKERS: dict[Verb, Callable[[StepContext], StepOutput]] = {
    "ingest": make_examples,
    "pseudolabel": make_pseudolabels,
    "train-student": make_student,
    "cross-label": make_cross_labels,
    "merge-labels": make_merged_labels,
    "evaluate": make_scores,
    "select": make_selection,
    "gate": make_gate,
    "report": make_report,
    "track": make_tracking,
    "gather-probabilities": make_probabilities,
    "train-tiny": make_grid,
    "train-small": make_small,
    "predict": make_predictions,
    "score": make_arm_scores,
    "time-students": make_times,
    "export-student": make_export,
    "report-scores": make_score_report,
    "track-scores": make_score_tracking,
}


def open_store(config: StoreConfig) -> Store:
    """The store of a config, its `${VAR}` expanded."""
    return Store(expand(config.root), config.server)


def make(config: Job, stage: Step, attempt: int, progress: Progress) -> ArtifactRef:
    """Make a stage's artifact and publish it. Raises what the maker raises; then nothing is published."""
    store = open_store(config.store)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retort-") as folder:
        work = StepContext(stage, store, Path(folder), config.execution, attempt, progress)
        product = MAKERS[stage.verb](work)
        ref = store.publish(stage, Path(folder), product, time.monotonic() - started, config.name)
    if stage.verb == "train-student":
        from retort.students.checkpoints import discard_checkpoint

        discard_checkpoint(store, stage.key)
    return ref
