"""`score`: predictions against gold labels: right, calibrated, and by group, over every seed."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from retort.config import Metric
from retort.config.soft_label import SoftLabelConfig
from retort.errors import DataError
from retort.io.parquet import Row, read_rows, write_rows
from retort.metrics.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from retort.metrics.scores import mean_score
from retort.metrics.seeds import SeedScore, over_seeds
from retort.problems.base import Floats
from retort.records.base import ArtifactRef, Example, Label, Record, Score, Step
from retort.steps.context import StepContext
from retort.steps.gather_probabilities import aligned
from retort.steps.ingest import GROUP_ROWS, read_gold
from retort.store import StepOutput

VERSION = 1
SCORES, ANSWERS = "scores.json", "answers.parquet"
_ANSWERS = pa.schema([(name, pa.string()) for name in ("example_id", "gold", "predicted")] + [("seed", pa.int32())])


class GroupScore(Record):
    """Answers to one question."""

    group: str
    n: int
    accuracy: float
    """Mean over seeds."""


class ArmScores(Record):
    """Of one arm on one set of rows."""

    n: int
    missing: int
    """Rows without a prediction: wrong for the metrics of labels, left out of those of calibration."""
    metrics: dict[str, SeedScore] = Field(default_factory=dict)
    """Empty where nothing was predicted. Those of labels, the deciding one first, then `ece`, `nll` (nats), `brier`."""
    rows: dict[Metric, Score] = Field(default_factory=dict)
    """The mean over seeds, with the interval over rows."""
    groups: tuple[GroupScore, ...] = ()


def score(config: SoftLabelConfig, name: str, predictions: tuple[ArtifactRef, ...], gold: ArtifactRef) -> Step:
    """`predictions` are one artifact with all seeds, or one for each seed."""
    return Step(
        name=name,
        verb="score",
        version=VERSION,
        kind="scores",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "metrics": list(config.metrics),
            "resamples": config.resamples,
            "seed": config.seed,
        },
        inputs={"predictions": predictions, "gold": (gold,)},
    )


def make_arm_scores(work: StepContext) -> StepOutput:
    gold = read_gold(work, "gold")
    ids = [example.example_id for example in gold]
    probabilities = np.concatenate([aligned(work, ref, ids) for ref in work.stage.inputs["predictions"]])
    labels = [_labels(work, of_seed) for of_seed in probabilities]
    write_rows(work.folder / ANSWERS, _ANSWERS, _answer_rows(gold, labels))
    missing = int(np.isnan(probabilities[0]).any(axis=-1).sum())
    told = ArmScores(n=len(gold), missing=missing)
    if missing < len(gold):
        told = ArmScores(
            n=len(gold),
            missing=missing,
            metrics=_metrics(work, gold, labels, probabilities),
            rows=_row_scores(work, gold, labels),
            groups=_groups(work, gold, labels),
        )
    (work.folder / SCORES).write_text(told.model_dump_json(indent=1), encoding="utf-8")
    return StepOutput(
        rows=len(gold), counts={"missing": told.missing}, metrics={name: one.mean for name, one in told.metrics.items()}
    )


def read_arm_scores(work: StepContext, ref: ArtifactRef) -> ArmScores:
    return ArmScores.model_validate_json((work.fetch_ref(ref) / SCORES).read_text(encoding="utf-8"))


def read_right(work: StepContext, ref: ArtifactRef) -> NDArray[np.bool_]:
    """`(seeds, rows)`: which answers were right, in the order of the gold rows."""
    rows = list(read_rows(work.fetch_ref(ref) / ANSWERS))
    seeds = sorted({row["seed"] for row in rows})
    return np.array([[row["predicted"] == row["gold"] for row in rows if row["seed"] == seed] for seed in seeds])


def _labels(work: StepContext, probabilities: Floats) -> list[Label | None]:
    """Of `(rows, classes)`, None where there are none."""
    return [None if np.isnan(row).any() else work.problem.decide("", row[None])[0] for row in probabilities]


def _answer_rows(gold: list[Example], labels: Sequence[Sequence[Label | None]]) -> Iterable[Row]:
    for seed, of_seed in enumerate(labels):
        for example, label in zip(gold, of_seed, strict=True):
            yield {"example_id": example.example_id, "gold": example.label, "predicted": label, "seed": seed}


def _metrics(
    work: StepContext, gold: list[Example], labels: Sequence[Sequence[Label | None]], probabilities: Floats
) -> dict[str, SeedScore]:
    golds, problem = [example.label or "" for example in gold], work.problem
    indices = np.array([problem.classes.index(label) for label in golds])
    values: dict[str, list[float]] = {
        metric: [_value(work, metric, golds, of_seed) for of_seed in labels] for metric in work.stage.params["metrics"]
    }
    known = [~np.isnan(of_seed).any(axis=-1) for of_seed in probabilities]
    for name, measure in (
        ("ece", expected_calibration_error),
        ("nll", negative_log_likelihood),
        ("brier", brier_score),
    ):
        pairs = zip(probabilities, known, strict=True)
        values[name] = [measure(of_seed[rows], indices[rows]) for of_seed, rows in pairs]
    return {name: over_seeds(of_seeds) for name, of_seeds in values.items()}


def _value(work: StepContext, metric: Metric, golds: list[Label], labels: Sequence[Label | None]) -> float:
    sums = sum(work.problem.statistics(metric, gold, label) for gold, label in zip(golds, labels, strict=True))
    return float(work.problem.value(metric, np.asarray(sums)))


def _row_scores(
    work: StepContext, gold: list[Example], labels: Sequence[Sequence[Label | None]]
) -> dict[Metric, Score]:
    golds, params = [example.label or "" for example in gold], work.stage.params
    return {
        metric: mean_score(work.problem, metric, golds, labels, params["resamples"], params["seed"])
        for metric in params["metrics"]
    }


def _groups(work: StepContext, gold: list[Example], labels: Sequence[Sequence[Label | None]]) -> tuple[GroupScore, ...]:
    """By group, the worst first."""
    path = work.fetch("gold") / GROUP_ROWS
    if not path.exists():
        return ()
    groups = {row["example_id"]: row["group"] for row in read_rows(path)}
    right: dict[str, list[float]] = {}
    for at, example in enumerate(gold):
        if example.example_id not in groups:
            raise DataError(f"{work.stage.name}: '{example.example_id}' belongs to no group")
        mean = float(np.mean([of_seed[at] == example.label for of_seed in labels]))
        right.setdefault(groups[example.example_id], []).append(mean)
    scores = [GroupScore(group=name, n=len(ones), accuracy=float(np.mean(ones))) for name, ones in right.items()]
    return tuple(sorted(scores, key=lambda one: (one.accuracy, one.group)))
