"""`cross-label`: a student labels what it was not trained on; also how a fine-tuned teacher labels the pool."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from retort.config import MckdConfig
from retort.io.parquet import FAILURES, PSEUDOLABELS, Row, read_rows, write_rows
from retort.records.base import ArtifactRef, ParseFailure, Step
from retort.steps.context import StepContext
from retort.steps.ingest import ROWS
from retort.steps.pseudolabel_recorded import FAILED_ROWS
from retort.steps.train_student import MODEL, in_cells, partition_params
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.base import Outcome

VERSION = 1
INVALID_SHARE = "invalid_share"
"""Of a student's outputs: those that were no label, whether they could be put right or not."""
MOST_FAILURES = 10_000
"""Kept with their text; all are counted."""


def cross_label(
    config: MckdConfig,
    name: str,
    student: ArtifactRef,
    rows: ArtifactRef,
    *,
    cells: tuple[int, ...] | None = None,
    siblings: int = 1,
    probabilities: bool = False,
) -> Step:
    """Label the `rows` (examples, or pseudolabels whose labels are not looked at) in `cells`."""
    return Step(
        name=name,
        verb="cross-label",
        version=VERSION,
        kind="pseudolabels",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "student": config.student.kind,
            "max_length": config.student.training.max_length,
            "cells": None if cells is None else partition_params(config, cells),
            "probabilities": probabilities,
        },
        inputs={"student": (student,), "rows": (rows,)},
        siblings=siblings,
    )


def make_cross_labels(work: StepContext) -> StepOutput:
    keep = work.stage.params["probabilities"]
    confidences: list[float] = []
    failures: list[Row] = []
    repaired = 0
    path = work.fetch("rows") / ROWS

    def rows() -> Iterator[Row]:
        nonlocal repaired
        old_rows = in_cells(read_rows(path), work.stage.params["cells"])
        for old, (row, outcome) in zip(old_rows, outcomes(work, "rows"), strict=True):
            if isinstance(outcome, ParseFailure):
                failures.append({"example_id": row["example_id"], **_told(outcome)})
                if old.get("label") is not None:
                    yield old
                continue
            confidences.append(outcome.confidence)
            repaired += outcome.is_repaired
            yield {
                "example_id": row["example_id"],
                "text": row["text"],
                "label": outcome.label,
                "confidence": outcome.confidence,
                "labeler": work.stage.name,
                "probabilities": outcome.probabilities.astype(np.float16).ravel() if keep else None,
            }

    count = write_rows(work.folder / ROWS, PSEUDOLABELS, rows())
    if failures:
        write_rows(work.folder / FAILED_ROWS, FAILURES, failures[:MOST_FAILURES])
    confidence = float(np.mean(confidences)) if confidences else 0.0
    counts = {name: number for name, number in (("failures", len(failures)), ("repaired", repaired)) if number}
    invalid = (len(failures) + repaired) / max(1, len(confidences) + len(failures))
    return StepOutput(rows=count, counts=counts, metrics={"confidence": confidence, INVALID_SHARE: invalid})


def _told(failure: ParseFailure) -> Row:
    return {"reason": failure.reason, "detail": failure.detail, "raw": failure.raw}


def outcomes(work: StepContext, role: str) -> Iterator[tuple[Row, "Outcome"]]:
    """Each row of the role's artifact that lies in the stage's cells, with what the student says of it."""
    from retort.models.device import choose_device
    from retort.students.loading import load_student

    params = work.stage.params
    device = choose_device(work.execution.device, "auto", work.stage.siblings)
    student = load_student(work.fetch("student") / MODEL, params["student"], params["max_length"], work.problem)
    path = work.fetch(role) / ROWS

    def wanted() -> Iterator[Row]:
        return in_cells(read_rows(path, ["example_id", "text"]), params.get("cells"))

    total = sum(1 for _ in wanted())
    said = student.predict(
        (row["text"] for row in wanted()),
        device=device,
        total=total,
        batch_tokens=max(64, 2048 >> work.attempt),
        progress=work.progress,
    )
    return zip(wanted(), said, strict=True)
