"""What a step runs with: the store, an empty folder to write into, and the machine's limits."""

from dataclasses import dataclass
from pathlib import Path

from retort.config.infrastructure import ExecutionConfig
from retort.records.base import Progress
from retort.records.rank import ALONE, Rank
from retort.store import Store


@dataclass(frozen=True)
class StepContext:
    store: Store
    """Where inputs are read from: `Examples.open(context.store, ref)`."""
    folder: Path
    """Empty at first; what is written here becomes the artifact."""
    execution: ExecutionConfig
    attempt: int = 0
    """0 for the first attempt. Each retry halves the number of rows held in memory."""
    progress: Progress = lambda *_: None
    rank: Rank = ALONE
    """This process's place among those that make the step together."""
