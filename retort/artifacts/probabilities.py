"""A scorer's class probabilities for each row, for all its seeds."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retort.artifacts.base import Artifact
from retort.data.probabilities import beside, by_name
from retort.errors import DataError
from retort.io.database import query
from retort.io.parquet import PROBABILITIES, Row, count_rows, write_rows
from retort.problems.base import Floats

PREDICTIONS = "predictions.parquet"
"""Has one row per example and seed, in the order of the examples."""
_SEEDS = "SELECT DISTINCT seed FROM read_parquet($predictions) ORDER BY seed"


@dataclass(frozen=True)
class Probabilities(Artifact):
    kind = "predictions"

    @property
    def path(self) -> Path:
        return self.folder / PREDICTIONS

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the order of the stored probabilities."""
        return tuple(self.manifest.fingerprint["params"]["problem"]["labels"])

    def seeds(self) -> list[int]:
        return [int(row["seed"]) for batch in query(_SEEDS, predictions=str(self.path)) for row in batch.to_pylist()]

    def beside(self, rows: Path, classes: tuple[str, ...], seed: int = 0) -> Iterator[Floats]:
        """Yield a seed's predictions for each row of a Parquet file with example_id, in its order and that of
        `classes`, in batches `(batch, classes)`; NaN for a row without any.

        Raises DataError if there are predictions, but none for these rows.
        """
        found = False
        for lists in beside(rows, self.path, seed):
            values = self._in_order(lists, classes)
            found = found or not np.isnan(values).all()
            yield values
        count = count_rows(self.path)
        if count and not found:
            name = self.manifest.name
            raise DataError(f"{name}: no id of {count_rows(rows)} rows is among those of {count} predictions")

    def _in_order(self, column: Any, classes: tuple[str, ...]) -> Floats:
        """Lists, of which some are null, as `(rows, classes)`."""
        values = np.full((len(column), len(classes)), np.nan)
        known = column.is_valid().to_numpy(zero_copy_only=False)
        if known.any():
            stored = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(self.classes))
            values[known] = by_name(stored.astype(np.float64), self.classes, classes)
        return values


def write_probabilities(
    folder: Path, ids: Callable[[], Iterable[str]], predicted: Iterable[tuple[int, Iterable[Floats]]]
) -> int:
    """Write each seed's probabilities `(classes,)` of every row; `ids` returns a fresh iterator over the rows' ids.
    Returns the number of rows in the file."""
    return write_rows(folder / PREDICTIONS, PROBABILITIES, _rows(ids, predicted))


def _rows(ids: Callable[[], Iterable[str]], predicted: Iterable[tuple[int, Iterable[Floats]]]) -> Iterator[Row]:
    for seed, of_seed in predicted:
        for example_id, values in zip(ids(), of_seed, strict=True):
            yield {"example_id": example_id, "seed": seed, "probabilities": values}
