"""What a step runs with: its inputs on local disk, an empty folder to write into, and the machine's limits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retort.config.infrastructure import ExecutionConfig
from retort.store import Store

Progress = Callable[[int, int, str], None]
"""(done, total, note)"""


@dataclass(frozen=True)
class StepContext:
    store: Store
    """Where inputs are read from; `Examples.open(context.store, ref)`."""
    folder: Path
    """Empty; what is written here becomes the artifact."""
    execution: ExecutionConfig
    attempt: int = 0
    """0 at first. Each retry halves the rows held in memory at once."""
    progress: Progress = lambda *_: None
