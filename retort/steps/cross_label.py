"""`cross-label`: a student labels rows that it was not trained on; fine-tuned teachers label the pool this way too."""

from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from retort.artifacts.pseudolabels import FAILED_ROWS, ROWS, Pseudolabels, failure_rows, open_rows
from retort.artifacts.scores import INVALID_SHARE
from retort.artifacts.shards import ShardOutcomes, ShardRows, write_outcomes
from retort.artifacts.students import TrainedStudent
from retort.config import Problem
from retort.data.partitions import Cells, in_cells
from retort.io.parquet import FAILURES, PSEUDOLABELS, Row, read_rows, write_rows
from retort.problems import problem_for
from retort.records.base import ArtifactRef, ParseFailure
from retort.steps.base import CPU, STUDENT, Resources, Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput, Store

if TYPE_CHECKING:
    from retort.students.base import Outcome

MOST_FAILURES = 10_000
"""Most failures that are kept with their text; all are counted."""

Rows = Callable[[], Iterator[Row]]
"""Returns a fresh iterator."""


class StudentStep(Step):
    """A step in which a trained student labels rows."""

    version = 3

    problem: Problem
    student_kind: Annotated[str, Field(serialization_alias="student")]
    max_length: int
    """Most tokens of a row that the student reads (for a tiny student: most words of a field)."""
    writes_text: Runtime[bool] = False
    """Whether the student writes labels as text, token by token. Not in this key, since the student's key has it."""
    student: ArtifactRef
    shards: Runtime[tuple[ArtifactRef, ...]] = ()
    """What other workers made of the rows, in order; empty if the student labels them all here."""

    @property
    def resources(self) -> Resources:
        return CPU if self.shards else STUDENT

    @property
    def fingerprint_version(self) -> int:
        """Since version 2, students that write text only write legal labels; since 3, their trees are mended where the
        grammar is of no help. All others are unchanged since 1."""
        if not self.writes_text:
            return 1
        return self.version if self.problem.kind == "constituency" else 2

    def outcomes(self, context: StepContext, rows: Rows) -> Iterator[tuple[Row, "Outcome"]]:
        """Each row (example_id, text) with the student's label for it."""
        if self.shards:
            shards = (ShardOutcomes.open(context.store, ref) for ref in self.shards)
            return zip(rows(), chain.from_iterable(shard.outcomes() for shard in shards), strict=True)
        from retort.models.device import choose_device
        from retort.students.loading import load_student

        device = choose_device(context.execution.device, "auto", self.cpu_shares)
        folder = TrainedStudent.open(context.store, self.student).model
        student = load_student(folder, self.student_kind, self.max_length, problem_for(self.problem))

        total, texts = sum(1 for _ in rows()), (row["text"] for row in rows())
        windows = (
            student.predict(
                islice(texts, size),
                device=device,
                total=size,
                batch_tokens=max(64, 2048 >> context.attempt),
                progress=context.progress,
            )
            for size in self.window_sizes(total)
        )
        return zip(rows(), chain.from_iterable(windows), strict=True)

    def window_sizes(self, total: int) -> Sequence[int]:
        """How many of the rows are predicted together, in their order; within it, prediction has windows of its own."""
        return (total,)


class LabelShard(StudentStep):
    """Let a student label one shard of the rows of a step."""

    kind = "label-shard"
    artifact = ShardOutcomes

    probabilities: bool
    content: str
    """Digest of the rows."""
    windows: Annotated[tuple[int, ...], Field(exclude_if=lambda windows: not windows)] = ()
    """How many rows are predicted together, where somebody else says so than prediction itself."""
    rows: Runtime[ShardRows]

    def window_sizes(self, total: int) -> Sequence[int]:
        return self.windows or (total,)

    def run(self, context: StepContext) -> StepOutput:
        path = self.rows.path(context.store)
        outcomes = (outcome for _, outcome in self.outcomes(context, lambda: read_rows(path)))
        return StepOutput(rows=write_outcomes(context.folder, outcomes, probabilities=self.probabilities))


class RowsStep(StudentStep):
    """A step in which a student labels rows that can be split into shards."""

    @property
    @abstractmethod
    def most_rows(self) -> int:
        """No more rows than these are labeled."""

    @property
    @abstractmethod
    def keeps_probabilities(self) -> bool:
        """Whether `run` reads the student's probabilities."""

    @abstractmethod
    def rows_in(self, store: Store) -> Rows:
        """The rows that the student labels, with example_id and text."""

    @contextmanager
    def rows_to_split(self, context: StepContext) -> Iterator[Iterator[Row]]:
        yield self.rows_in(context.store)()

    def rows_of_shard(self, shard_rows: int) -> int:
        """Rows that are predicted together affect each other's rounding, so a shard is a number of whole windows."""
        from retort.students.batching import WINDOW_ROWS

        return -(-shard_rows // WINDOW_ROWS) * WINDOW_ROWS

    def shard(self, name: str, content: str, rows: ShardRows, share: float) -> LabelShard:
        """The step for one shard, whose rows have the digest `content` and are `share` of all, in [0, 1]."""
        fields = {field: getattr(self, field) for field in StudentStep.model_fields if field not in ("name", "shards")}
        return LabelShard(**fields, name=name, probabilities=self.keeps_probabilities, content=content, rows=rows)


class CrossLabel(RowsStep):
    """Let a student label rows that it was not trained on."""

    kind = "cross-label"
    version = 3
    artifact = Pseudolabels

    cells: Cells | None
    probabilities: bool
    """Whether the rows keep the student's probabilities."""
    rows: ArtifactRef
    """Examples, or pseudolabels whose labels the student does not see."""
    min_success_ratio: Runtime[float] = 0.0
    """The step fails if less than this share of the rows get a label."""

    @property
    def most_rows(self) -> int:
        return self.rows.rows

    @property
    def keeps_probabilities(self) -> bool:
        return self.probabilities

    def rows_in(self, store: Store) -> Rows:
        source = open_rows(store, self.rows)
        return lambda: in_cells(source.rows(["example_id", "text"]), self.cells)

    def run(self, context: StepContext) -> StepOutput:
        confidences = array("d")
        failures: list[tuple[str, ParseFailure]] = []
        reasons: Counter[str] = Counter()
        repaired = 0

        def rows() -> Iterator[Row]:
            nonlocal repaired
            for row, outcome in self.outcomes(context, self.rows_in(context.store)):
                if isinstance(outcome, ParseFailure):
                    reasons[outcome.reason] += 1
                    if len(failures) < MOST_FAILURES:
                        failures.append((row["example_id"], outcome))
                    continue
                confidences.append(outcome.confidence)
                repaired += outcome.is_repaired
                yield {
                    "example_id": row["example_id"],
                    "text": row["text"],
                    "label": outcome.label,
                    "confidence": outcome.confidence,
                    "labeler": self.name,
                    "probabilities": outcome.probabilities.astype(np.float16).ravel() if self.probabilities else None,
                }

        count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        if failures:
            write_rows(context.folder / FAILED_ROWS, FAILURES, failure_rows(failures))
        failed = reasons.total()
        check_success(self.min_success_ratio, count, reasons + Counter(asked=len(confidences) + failed))
        confidence = float(np.mean(confidences)) if confidences else 0.0
        counts = {name: number for name, number in (("failures", failed), ("repaired", repaired)) if number}
        invalid = (failed + repaired) / max(1, len(confidences) + failed)
        return StepOutput(rows=count, counts=counts, metrics={"confidence": confidence, INVALID_SHARE: invalid})
