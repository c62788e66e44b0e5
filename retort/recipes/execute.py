"""One call that turns a step into an artifact: run it, publish. It runs in a supervised child."""

import tempfile
import time
from pathlib import Path

from retort.config import RunSettings
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import Progress, StepContext
from retort.store.opening import open_store


def make(settings: RunSettings, step: Step, attempt: int, progress: Progress) -> ArtifactRef:
    """Make a step's artifact and publish it. Raises what the step raises; then nothing is published."""
    store = open_store(settings.store)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retort-") as folder:
        context = StepContext(store, Path(folder), settings.execution, attempt, progress)
        output = step.run(context)
        ref = store.publish(step, Path(folder), output, time.monotonic() - started, settings.name)
        step.published(context)
    return ref


def made_or_found(settings: RunSettings, step: Step) -> ArtifactRef:
    """In this process: for what is cheap, and for checks."""
    store = open_store(settings.store)
    manifest = store.find(step.artifact_kind, step.key)
    return store.ref(manifest) if manifest else make(settings, step, 0, lambda *_: None)
