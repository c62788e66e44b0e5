"""Scores on gold-labeled rows, and the predictions behind them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from retort.artifacts.base import Artifact
from retort.config.base import Metric
from retort.io.parquet import Row, read_rows
from retort.metrics.seeds import SeedScore
from retort.records.base import Label, Record, Score

PREDICTIONS, SCORES, ANSWERS = "predictions.parquet", "scores.json", "answers.parquet"
PREDICTED = pa.schema(
    [(name, pa.string()) for name in ("example_id", "text", "gold", "predicted")] + [("confidence", pa.float32())]
)
ANSWERED = pa.schema([(name, pa.string()) for name in ("example_id", "gold", "predicted")] + [("seed", pa.int32())])
INVALID_SHARE = "invalid_share"
"""Metric: the share of a student's outputs that were not valid labels, whether or not they could be repaired."""


@dataclass(frozen=True)
class Scores(Artifact):
    """Scores of one student, or of a stage's labels."""

    kind = "scores"

    def scores(self) -> dict[str, Score]:
        """Scores by metric, in the order of the config's metrics."""
        found = json.loads((self.folder / SCORES).read_text(encoding="utf-8"))
        return {item["metric"]: Score.model_validate(item) for item in found}

    def predictions(self, columns: list[str] | None = None) -> Iterator[Row]:
        """Rows of example_id, text, gold, predicted (None without a label), confidence."""
        return read_rows(self.folder / PREDICTIONS, columns)


def write_scores(folder: Path, scores: Iterable[Score]) -> None:
    (folder / SCORES).write_text(json.dumps([score.model_dump() for score in scores]))


class GroupScore(Record):
    """The score for one group, such as the answers to one question."""

    group: str
    n: int
    accuracy: float
    """Mean over seeds."""


class ArmScores(Record):
    """Scores of one arm on one set of rows."""

    n: int
    missing: int
    """Rows without a prediction. They count as wrong in label metrics and are left out of calibration metrics."""
    metrics: dict[str, SeedScore] = Field(default_factory=dict)
    """Label metrics, the deciding one first, then `ece`, `nll` (nats) and `brier`; empty if nothing was predicted."""
    rows: dict[Metric, Score] = Field(default_factory=dict)
    """The mean over seeds, with the interval over rows."""
    groups: tuple[GroupScore, ...] = ()


@dataclass(frozen=True)
class SeedScores(Artifact):
    """Scores of an arm over all its seeds."""

    kind = "scores"

    def scores(self) -> ArmScores:
        return ArmScores.model_validate_json((self.folder / SCORES).read_text(encoding="utf-8"))

    def gold(self) -> list[tuple[str, Label]]:
        """(example_id, gold label) of each row."""
        rows = read_rows(self.folder / ANSWERS, ["example_id", "gold", "seed"])
        return [(row["example_id"], row["gold"]) for row in rows if row["seed"] == 0]

    def answers(self) -> list[list[Label | None]]:
        """Each seed's labels, with rows in the order of the gold rows."""
        found: dict[int, list[Label | None]] = {}
        for row in read_rows(self.folder / ANSWERS, ["predicted", "seed"]):
            found.setdefault(row["seed"], []).append(row["predicted"])
        return [found[seed] for seed in sorted(found)]

    def right(self) -> NDArray[np.bool_]:
        """`(seeds, rows)`: which answers were right, with rows in the order of the gold rows."""
        rows = list(read_rows(self.folder / ANSWERS))
        seeds = sorted({row["seed"] for row in rows})
        return np.array([[row["predicted"] == row["gold"] for row in rows if row["seed"] == seed] for seed in seeds])
