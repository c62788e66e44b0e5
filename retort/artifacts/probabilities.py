"""A scorer's class probabilities for each row, for all its seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retort.artifacts.base import Artifact
from retort.data.probabilities import by_name
from retort.errors import DataError
from retort.io.parquet import PROBABILITIES, Row, read_rows, write_rows
from retort.problems.base import Floats

PREDICTIONS = "predictions.parquet"
"""Has one row per example and seed, in the order of the examples."""


@dataclass(frozen=True)
class Probabilities(Artifact):
    kind = "predictions"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the order of the stored probabilities."""
        return tuple(self.manifest.fingerprint["params"]["problem"]["labels"])

    def aligned(self, ids: list[str], classes: tuple[str, ...]) -> Floats:
        """`(seeds, rows, classes)`: the predictions in the order of `ids` and `classes`; NaN where there is none.

        Raises DataError if there are predictions, but none for these ids.
        """
        rows = list(read_rows(self.folder / PREDICTIONS))
        seeds = {seed: at for at, seed in enumerate(sorted({row["seed"] for row in rows}))}
        places = {example_id: at for at, example_id in enumerate(ids)}
        if not rows:
            return np.full((1, len(ids), len(classes)), np.nan)
        wanted = [row for row in rows if row["example_id"] in places]
        if not wanted:
            name = self.manifest.name
            raise DataError(f"{name}: no id of {len(ids)} rows is among those of {len(rows)} predictions")
        found = np.full((len(seeds), len(ids), len(classes)), np.nan)
        at = ([seeds[row["seed"]] for row in wanted], [places[row["example_id"]] for row in wanted])
        found[at] = by_name(np.array([row["probabilities"] for row in wanted]), self.classes, classes)
        return found


def write_probabilities(folder: Path, ids: list[str], seeds: list[int], probabilities: Floats) -> int:
    """Write `(seeds, rows, classes)` probabilities. Returns the number of rows in the file."""
    return write_rows(folder / PREDICTIONS, PROBABILITIES, _rows(ids, seeds, probabilities))


def _rows(ids: list[str], seeds: list[int], probabilities: Floats) -> Iterator[Row]:
    for seed, of_seed in zip(seeds, probabilities, strict=True):
        for example_id, values in zip(ids, of_seed, strict=True):
            yield {"example_id": example_id, "seed": seed, "probabilities": values}
