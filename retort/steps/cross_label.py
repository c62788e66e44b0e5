"""`cross-label`: a student labels rows that it was not trained on; fine-tuned teachers label the pool this way too."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from retort.artifacts.pseudolabels import FAILED_ROWS, ROWS, Pseudolabels, failure_rows, open_rows
from retort.artifacts.scores import INVALID_SHARE
from retort.artifacts.students import TrainedStudent
from retort.config import Problem
from retort.data.partitions import Cells, in_cells
from retort.io.parquet import FAILURES, PSEUDOLABELS, Row, write_rows
from retort.problems import problem_for
from retort.records.base import ArtifactRef, ParseFailure
from retort.steps.base import STUDENT, Resources, Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.base import Outcome

MOST_FAILURES = 10_000
"""Most failures that are kept with their text; all are counted."""


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

    @property
    def resources(self) -> Resources:
        return STUDENT

    @property
    def fingerprint_version(self) -> int:
        """Since version 2, students that write text only write legal labels; since 3, their trees are mended where the
        grammar is of no help. All others are unchanged since 1."""
        if not self.writes_text:
            return 1
        return self.version if self.problem.kind == "constituency" else 2

    def outcomes(self, context: StepContext, rows: Callable[[], Iterator[Row]]) -> Iterator[tuple[Row, "Outcome"]]:
        """Each row (example_id, text) with the student's label for it. `rows` returns a fresh iterator."""
        from retort.models.device import choose_device
        from retort.students.loading import load_student

        device = choose_device(context.execution.device, "auto", self.siblings)
        folder = TrainedStudent.open(context.store, self.student).model
        student = load_student(folder, self.student_kind, self.max_length, problem_for(self.problem))

        total = sum(1 for _ in rows())
        outcomes = student.predict(
            (row["text"] for row in rows()),
            device=device,
            total=total,
            batch_tokens=max(64, 2048 >> context.attempt),
            progress=context.progress,
        )
        return zip(rows(), outcomes, strict=True)


class CrossLabel(StudentStep):
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

    def run(self, context: StepContext) -> StepOutput:
        confidences: list[float] = []
        failures: list[tuple[str, ParseFailure]] = []
        repaired = 0

        source = open_rows(context.store, self.rows)

        def unseen() -> Iterator[Row]:
            return in_cells(source.rows(["example_id", "text"]), self.cells)

        def rows() -> Iterator[Row]:
            nonlocal repaired
            for row, outcome in self.outcomes(context, unseen):
                if isinstance(outcome, ParseFailure):
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
            write_rows(context.folder / FAILED_ROWS, FAILURES, failure_rows(failures[:MOST_FAILURES]))
        reasons = Counter(outcome.reason for _, outcome in failures)
        check_success(self.min_success_ratio, count, reasons + Counter(asked=len(confidences) + len(failures)))
        confidence = float(np.mean(confidences)) if confidences else 0.0
        counts = {name: number for name, number in (("failures", len(failures)), ("repaired", repaired)) if number}
        invalid = (len(failures) + repaired) / max(1, len(confidences) + len(failures))
        return StepOutput(rows=count, counts=counts, metrics={"confidence": confidence, INVALID_SHARE: invalid})
