"""`predict`: what an arm says of dev or test rows. Students say it for each seed, a baseline once."""

from typing import Any

import numpy as np

from retort.config.soft_label import Arm, SoftLabelConfig
from retort.io.parquet import PROBABILITIES, read_rows, write_rows
from retort.problems.base import Floats
from retort.records.base import ArtifactRef, Step
from retort.steps.context import StepContext
from retort.steps.gather_probabilities import PREDICTIONS, prediction_rows
from retort.steps.ingest import ROWS, read_gold
from retort.steps.train_grid import fields_of, read_students
from retort.store import StepOutput

VERSION = 1


def predict_tiny(config: SoftLabelConfig, name: str, grid: ArtifactRef, rows: ArtifactRef) -> Step:
    """By the students of the arm's best setting."""
    params = {"fields": config.data.columns.text, "student": config.student.model_dump(mode="json")}
    return _stage(config, name, {"arm": "tiny", **params}, {"grid": (grid,), "rows": (rows,)})


def predict_baseline(config: SoftLabelConfig, name: str, arm: Arm, train: ArtifactRef, rows: ArtifactRef) -> Step:
    """`tfidf` or `majority`, fitted anew: it takes no time."""
    params = {"fields": config.data.columns.text, "arm": arm, "seed": config.seed}
    return _stage(config, name, params, {"train": (train,), "rows": (rows,)})


def _stage(
    config: SoftLabelConfig, name: str, params: dict[str, Any], inputs: dict[str, tuple[ArtifactRef, ...]]
) -> Step:
    return Step(
        name=name,
        verb="predict",
        version=VERSION,
        kind="predictions",
        params={"problem": config.problem.model_dump(mode="json"), **params},
        inputs=inputs,
    )


def make_predictions(work: StepContext) -> StepOutput:
    rows = list(read_rows(work.fetch("rows") / ROWS, ["example_id", "text"]))
    names = tuple(work.stage.params["fields"])
    fields = [fields_of(row["text"], names) for row in rows]
    if work.stage.params["arm"] == "tiny":
        seeds, probabilities = _by_students(work, fields)
    else:
        seeds, probabilities = [0], _by_baseline(work, fields)[None]
    ids = [row["example_id"] for row in rows]
    count = write_rows(work.folder / PREDICTIONS, PROBABILITIES, prediction_rows(ids, seeds, probabilities))
    return StepOutput(rows=count)


def _by_students(work: StepContext, fields: list[list[str]]) -> tuple[list[int], Floats]:
    from retort.students.tiny.network import predict

    grid, vocabulary, weights = read_students(work.fetch("grid"))
    texts = vocabulary.encode(fields)
    return grid["seeds"], np.stack([predict(one, texts) for one in weights])


def _by_baseline(work: StepContext, fields: list[list[str]]) -> Floats:
    """`(rows, classes)`. Reads the training rows' gold labels, as every arm does."""
    from retort.students.tiny.baselines import majority, tfidf

    names = tuple(work.stage.params["fields"])
    train = read_gold(work, "train")
    classes = work.problem.classes
    gold = np.array([classes.index(example.label or "") for example in train])
    if work.stage.params["arm"] == "majority":
        return majority(gold, len(classes), len(fields))
    return tfidf([fields_of(example.text, names) for example in train], gold, fields, len(classes))
