"""`cross-label`: a student labels what it was not trained on; also how a fine-tuned teacher labels the pool."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from retort.config import Config
from retort.records import ArtifactRef, Stage
from retort.rows import PSEUDOLABELS, Row, read_rows, write_rows
from retort.stages.examples import ROWS
from retort.stages.student import MODEL, in_cells, partition_params
from retort.stages.work import Work
from retort.store import Product

if TYPE_CHECKING:
    from retort.students.prediction import Prediction

VERSION = 1


def cross_label(
    config: Config,
    name: str,
    student: ArtifactRef,
    rows: ArtifactRef,
    *,
    cells: tuple[int, ...] | None = None,
    siblings: int = 1,
    probabilities: bool = False,
) -> Stage:
    """Label the `rows` (examples, or pseudolabels whose labels are not looked at) in `cells`."""
    return Stage(
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


def make_cross_labels(work: Work) -> Product:
    keep = work.stage.params["probabilities"]
    confidences: list[float] = []

    def rows() -> Iterator[Row]:
        for row, prediction in predictions(work, "rows"):
            confidences.append(prediction.confidence)
            yield {
                "example_id": row["example_id"],
                "text": row["text"],
                "label": prediction.label,
                "confidence": prediction.confidence,
                "labeler": work.stage.name,
                "probabilities": prediction.probabilities.astype(np.float16).ravel() if keep else None,
            }

    count = write_rows(work.folder / ROWS, PSEUDOLABELS, rows())
    return Product(rows=count, metrics={"confidence": float(np.mean(confidences)) if count else 0.0})


def predictions(work: Work, role: str) -> Iterator[tuple[Row, "Prediction"]]:
    """Each row of the role's artifact that lies in the stage's cells, with the student's prediction."""
    from retort.students.device import choose_device
    from retort.students.encoder import load_encoder
    from retort.students.prediction import predict

    params = work.stage.params
    device = choose_device(work.execution.device, "auto", work.stage.siblings)
    encoder = load_encoder(work.fetch("student") / MODEL, params["student"], params["max_length"], work.problem.classes)
    path = work.fetch(role) / ROWS

    def wanted() -> Iterator[Row]:
        return in_cells(read_rows(path, ["example_id", "text"]), params.get("cells"))

    total = sum(1 for _ in wanted())
    predicted = predict(
        encoder,
        work.problem,
        (row["text"] for row in wanted()),
        device=device,
        total=total,
        batch_tokens=max(64, 2048 >> work.attempt),
        progress=work.progress,
    )
    return zip(wanted(), predicted, strict=True)
