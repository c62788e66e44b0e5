"""One call that turns a stage into an artifact: fetch inputs, make, publish. It runs in a supervised child."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from retort.config import StoreConfig, expand
from retort.config.scoring import Job
from retort.records import ArtifactRef, Stage, Verb
from retort.stages.cross_labels import make_cross_labels
from retort.stages.examples import make_examples
from retort.stages.gate import make_gate
from retort.stages.pseudolabels import make_merged_labels
from retort.stages.report import make_report
from retort.stages.score_export import make_export
from retort.stages.score_predictions import make_predictions
from retort.stages.score_probabilities import make_probabilities
from retort.stages.score_report import make_score_report
from retort.stages.score_scores import make_arm_scores
from retort.stages.score_small import make_small
from retort.stages.score_students import make_grid
from retort.stages.score_times import make_times
from retort.stages.score_tracking import make_score_tracking
from retort.stages.scores import make_scores
from retort.stages.selection import make_selection
from retort.stages.student import make_student
from retort.stages.teacher import make_pseudolabels
from retort.stages.tracking import make_tracking
from retort.stages.work import Progress, Work
from retort.store import Product, Store

MAKERS: dict[Verb, Callable[[Work], Product]] = {
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


def make(config: Job, stage: Stage, attempt: int, progress: Progress) -> ArtifactRef:
    """Make a stage's artifact and publish it. Raises what the maker raises; then nothing is published."""
    store = open_store(config.store)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retort-") as folder:
        work = Work(stage, store, Path(folder), config.execution, attempt, progress)
        product = MAKERS[stage.verb](work)
        ref = store.publish(stage, Path(folder), product, time.monotonic() - started, config.name)
    if stage.verb == "train-student":
        from retort.students.checkpoints import discard_checkpoint

        discard_checkpoint(store, stage.key)
    return ref
