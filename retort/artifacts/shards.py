"""What steps hand to each other when their rows are worked on in shards, see `retort.steps.split_rows`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retort.artifacts.base import Artifact
from retort.io.parquet import Row, read_rows, write_rows
from retort.records.base import ArtifactRef, ParseFailure, Record
from retort.store import Store

if TYPE_CHECKING:
    from retort.students.base import Outcome

OUTCOME_ROWS, UNLABELED_ROWS = "outcomes.parquet", "unlabeled.parquet"
NUM_ROWS = "rows"
"""The entry of a split's `details` with the number of rows of each shard."""
_FAILED: "list[pa.Field[Any]]" = [pa.field(name, pa.string()) for name in ("reason", "detail", "raw")]
_OUTCOMES: "list[pa.Field[Any]]" = [
    pa.field("label", pa.string()),
    pa.field("confidence", pa.float64()),
    pa.field("is_repaired", pa.bool_()),
    pa.field("probabilities", pa.list_(pa.float32())),  # (units, classes) in row-major order
    pa.field("units", pa.int32()),
    *_FAILED,
]
OUTCOMES = pa.schema(_OUTCOMES)
"""A student's outcomes without loss; those of `ParseFailure` have a reason, a detail and the raw text alone."""
UNLABELED = pa.schema([pa.field("key", pa.binary(16)), *_FAILED])


class ShardRows(Record):
    """The rows of one shard: a file of the artifact that the split made."""

    split: ArtifactRef
    file: str

    def path(self, store: Store) -> Path:
        """The file with example_id and text, on local disk. Raises DamagedArtifact, StoreUnavailable."""
        return store.open_file(store.manifest_of(self.split), self.file)


@dataclass(frozen=True)
class SplitRows(Artifact):
    """A step's rows, a file for each shard, in their order."""

    kind = "shard-rows"


@dataclass(frozen=True)
class ShardOutcomes(Artifact):
    """What a student made of the rows of a shard."""

    kind = "shard-outcomes"

    def outcomes(self) -> "Iterator[Outcome]":
        """In the order of the rows."""
        from retort.students.base import Prediction

        for row in read_rows(self.folder / OUTCOME_ROWS):
            if row["reason"] is not None:
                yield ParseFailure(row["reason"], row["detail"], row["raw"])
            else:
                yield Prediction(row["label"], row["confidence"], _matrix(row), row["is_repaired"])


def write_outcomes(folder: Path, outcomes: "Iterable[Outcome]", *, probabilities: bool) -> int:
    """Write them and return their number. Without `probabilities`, those are left out."""
    return write_rows(folder / OUTCOME_ROWS, OUTCOMES, (_as_row(outcome, probabilities) for outcome in outcomes))


def _as_row(outcome: "Outcome", probabilities: bool) -> Row:
    if isinstance(outcome, ParseFailure):
        return {"reason": outcome.reason, "detail": outcome.detail, "raw": outcome.raw}
    matrix = outcome.probabilities if probabilities else np.empty((0, 0), dtype=np.float32)
    values = {"probabilities": matrix.ravel(), "units": len(matrix)}
    return {"label": outcome.label, "confidence": outcome.confidence, "is_repaired": outcome.is_repaired, **values}


def _matrix(row: Row) -> NDArray[np.float32]:
    flat = np.asarray(row["probabilities"], dtype=np.float32)
    return flat.reshape(row["units"], -1) if row["units"] else np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class Unlabeled(Artifact):
    """The rows of a shard that an LLM gave no label. The completions of all are in its ledger."""

    kind = "shard-failures"

    def failures(self) -> Iterator[tuple[bytes, ParseFailure]]:
        """With the ledger key of each row's first completion."""
        for row in read_rows(self.folder / UNLABELED_ROWS):
            yield row["key"], ParseFailure(row["reason"], row["detail"], row["raw"])


def write_unlabeled(folder: Path, failures: Iterable[tuple[bytes, ParseFailure]]) -> int:
    rows = ({"key": key, "reason": one.reason, "detail": one.detail, "raw": one.raw} for key, one in failures)
    return write_rows(folder / UNLABELED_ROWS, UNLABELED, rows)
