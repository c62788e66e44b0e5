"""Runs a step and publishes its artifact. Expensive steps call this in a supervised child process."""

import tempfile
import time
from pathlib import Path

from retort.config import RunSettings
from retort.records.base import ArtifactRef, Progress
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store.opening import open_store


def make(settings: RunSettings, step: Step, attempt: int, progress: Progress) -> ArtifactRef:
    """Make a step's artifact and publish it. If the step raises, nothing is published."""
    store = open_store(settings.store)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retort-") as folder:
        context = StepContext(store, Path(folder), settings.execution, attempt, progress)
        output = step.run(context)
        ref = store.publish(step, Path(folder), output, time.monotonic() - started, settings.name)
        step.published(context)
    return ref


def made_or_found(settings: RunSettings, step: Step) -> ArtifactRef:
    """Find the artifact, or make it in this process. For cheap steps and for checks."""
    store = open_store(settings.store)
    manifest = store.find(step.artifact_kind, step.key)
    return store.ref(manifest) if manifest else make(settings, step, 0, lambda *_: None)
