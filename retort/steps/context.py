"""What a maker is given: a stage, its inputs on local disk, and an empty folder to write into."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from retort.config import ExecutionConfig, Problem
from retort.problems import Problem as ProblemKind
from retort.problems import problem_for
from retort.records.base import ArtifactRef, Step
from retort.store import Store

Progress = Callable[[int, int, str], None]

_PROBLEM: TypeAdapter[Any] = TypeAdapter(Problem)


@dataclass(frozen=True)
class StepContext:
    stage: Step
    store: Store
    folder: Path
    """Empty; what is written here becomes the artifact."""
    execution: ExecutionConfig
    attempt: int
    """0 at first. Each retry halves the rows held in memory at once."""
    progress: Progress

    @cached_property
    def problem(self) -> ProblemKind:
        return problem_for(_PROBLEM.validate_python(self.stage.params["problem"]))

    def fetch(self, role: str) -> Path:
        """The only input of a role, verified, on local disk."""
        return self.store.fetch(self.stage.input(role))

    def fetch_ref(self, ref: ArtifactRef) -> Path:
        return self.store.fetch(ref)
