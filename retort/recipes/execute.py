"""Runs a step and publishes its artifact. Expensive steps call this in a supervised child process."""

import errno
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from retort.config import RunSettings
from retort.errors import RetortError, StageFailed, first_line
from retort.io.scratch import scratch, sweep
from retort.models.weights import downloads
from retort.records.base import ArtifactRef, Progress
from retort.records.rank import ALONE, Rank
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store.opening import open_store


def make(settings: RunSettings, step: Step, attempt: int, progress: Progress, rank: Rank = ALONE) -> ArtifactRef:
    """Make a step's artifact and publish it. If the step raises, nothing is published. Raises StageFailed if the disk
    of temporary files is full."""
    store = open_store(settings.store)
    started, made_on = time.monotonic(), _made_on(settings, step, rank)
    with _full_disk_told(step), scratch("made") as folder:
        context = StepContext(store, folder, settings.execution, attempt, progress, rank)
        output = step.run(context)
        output = output.model_copy(update={"details": {**output.details, **made_on}})
        ref = store.publish(step, folder, output, time.monotonic() - started, settings.name)
        step.published(context)
    return ref


def assist(settings: RunSettings, step: Step, attempt: int, progress: Progress, rank: Rank) -> None:
    """Do the part of another process than the first in making a step."""
    with _full_disk_told(step), scratch("made") as folder:
        step.run(StepContext(open_store(settings.store), folder, settings.execution, attempt, progress, rank))


def start_ahead(settings: RunSettings, step: PseudolabelLlm, progress: Progress) -> bool:
    """Start the engine of a labeling that this process will `make`; returns whether it needs one."""
    with scratch("made") as folder:
        return step.start_ahead(StepContext(open_store(settings.store), folder, settings.execution, 0, progress))


def _made_on(settings: RunSettings, step: Step, rank: Rank = ALONE) -> dict[str, str]:
    """When, on which machine and on which GPUs a step is made, for the report's time line. No part of any key."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    known = {"host": platform.node(), "started_at": now}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = settings.execution.device == "cpu" or visible in ("", "-1") or not has_gpu()
    if step.resources.gpu == "none" or hidden:
        return known
    if step.resources.gpu == "all":
        return {**known, "gpu": visible or "all"}
    return {**known, "gpu": ",".join(rank.gpus) or (visible or "0").split(",")[0]}


def has_gpu() -> bool:
    """Whether the machine has one, as far as can be told without importing torch."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


@contextmanager
def _full_disk_told(step: Step) -> Iterator[None]:
    try:
        yield
    except RetortError:
        raise
    except Exception as error:  # each library that writes files has a type of its own
        if not _is_full_disk(error):
            raise
        raise StageFailed(
            f"{step.name}: the disk is full where temporary files are written ({tempfile.gettempdir()}): make room "
            f"there, or set TMPDIR ({first_line(error)})"
        ) from error


def _is_full_disk(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error).lower()
    return getattr(error, "errno", None) in full or any(
        f"os error {number})" in text or os.strerror(number).lower() in text for number in full
    )


def sweep_leftovers(settings: RunSettings) -> int:
    """Delete the temporary folders that killed processes of this user left on this machine; returns how many."""
    return sum(sweep(parent) for parent in (None, open_store(settings.store).cache, downloads()))


def made_or_found(settings: RunSettings, step: Step) -> ArtifactRef:
    """Find the artifact, or make it in this process. For cheap steps and for checks."""
    store = open_store(settings.store)
    manifest = store.find(step.artifact_kind, step.key)
    return store.ref(manifest) if manifest else make(settings, step, 0, lambda *_: None)
