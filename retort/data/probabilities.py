"""A teacher's precomputed class probabilities: JSON Lines, matched to rows by id and to classes by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retort.data.ids import SeenIds
from retort.data.reading import batches, read_rows_of, unicode_text
from retort.errors import DataError
from retort.io.database import query
from retort.io.parquet import PROBABILITIES, write_rows
from retort.io.scratch import scratch
from retort.problems.base import Floats, listed

TOLERANCE = 0.01
"""How much a row's sum may differ from 1, to allow for probabilities rounded to a few digits."""


_BESIDE = """
    SELECT found.probabilities
    FROM read_parquet($rows, file_row_number = true) AS asked
    LEFT JOIN (SELECT * FROM read_parquet($probabilities) WHERE seed = $seed) AS found
        ON found.example_id = asked.example_id
    ORDER BY asked.file_row_number
"""
_KNOWN = """
    SELECT count(*) FROM read_parquet($rows) AS asked SEMI JOIN read_parquet($probabilities) AS found USING (example_id)
"""
_CONTRADICTED = """
    WITH known AS (
        SELECT example_id, text, list_position($rows, filename) - 1 AS file, file_row_number
        FROM read_parquet($rows, filename = true, file_row_number = true) AS asked
        SEMI JOIN read_parquet($probabilities) AS found USING (example_id)
    )
    SELECT example_id, first.file, first.text, other.file, other.text
    FROM known AS first JOIN known AS other USING (example_id)
    WHERE first.file < other.file AND first.text != other.text
    ORDER BY other.file, other.file_row_number, first.file
    LIMIT 1
"""


class Probabilities(NamedTuple):
    example_id: str
    values: Floats
    """Shape `(classes,)`, in the problem's order, summing to 1."""


def read_probabilities(
    address: str, classes: tuple[str, ...], endpoint_url: str | None = None
) -> Iterator[Probabilities]:
    """Yield every row, in order.

    Raises DataError, naming file and line, for a duplicate id or a row that is not a distribution over exactly these
    classes.
    """
    seen = SeenIds()
    for batch in batches(read_rows_of(address, endpoint_url)):
        ids = [_id_of(row) for _, row in batch]
        given = [one for one in ids if one is not None]
        known = dict(zip(given, seen.first_places(given), strict=True))
        new: dict[str, str] = {}
        for (place, row), example_id in zip(batch, ids, strict=True):
            if example_id is None:
                raise DataError(
                    f"{place}: the id ('id') is {row.get('id')!r:.60}, where a string or a number is needed"
                )
            if first := known[example_id] or new.get(example_id):
                raise DataError(f"{place}: the id '{example_id}' is already that of {first}")
            new[unicode_text(place, "id", example_id)] = place
            yield Probabilities(example_id, _distribution(place, row.get("probabilities"), classes))
        seen.add(list(new), list(new.values()))


def _id_of(row: Mapping[str, Any]) -> str | None:
    given = row.get("id")
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) else None


def _distribution(place: str, given: Any, classes: tuple[str, ...]) -> Floats:
    if not isinstance(given, Mapping):
        raise DataError(f"{place}: 'probabilities' is {given!r:.60}, where {{CLASS: p, ...}} is needed")
    given = {
        name: p for name, p in given.items() if p is not None or name in classes
    }  # Parquet pads structs with nulls
    if missing := [name for name in classes if name not in given]:
        raise DataError(f"{place}: the class '{missing[0]}' has no probability; needed: {listed(classes)}")
    if unknown := [name for name in given if name not in classes]:
        raise DataError(f"{place}: '{unknown[0]}' is not a class; allowed: {listed(classes)}")
    for name, p in given.items():
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:  # rejects NaN too
            raise DataError(f"{place}: the probability of '{name}' is {p!r:.40}, where a number from 0 to 1 is needed")
    values = np.array([given[name] for name in classes], dtype=np.float64)
    if abs(values.sum() - 1) > TOLERANCE:
        raise DataError(f"{place}: the probabilities sum to {values.sum():.4g}, where 1 is needed")
    scaled: Floats = values / values.sum()
    return scaled


@contextmanager
def recorded_probabilities(address: str, classes: tuple[str, ...], endpoint_url: str | None) -> Iterator[Path]:
    """The probabilities as a temporary Parquet file. Raises DataError as `read_probabilities` does."""
    with scratch("probabilities") as folder:
        file = folder / "probabilities.parquet"
        found = read_probabilities(address, classes, endpoint_url)
        rows = ({"example_id": one.example_id, "seed": 0, "probabilities": one.values} for one in found)
        write_rows(file, PROBABILITIES, rows)
        yield file


def beside(rows: Path, probabilities: Path, seed: int = 0) -> Iterator[Any]:
    """Yield the probabilities of each row of a Parquet file with example_id, in its order, null where there are none,
    as Arrow's arrays of lists."""
    for batch in query(_BESIDE, rows=str(rows), probabilities=str(probabilities), seed=seed):
        yield batch.column(0)


def num_known(rows: Path, probabilities: Path) -> int:
    """How many of the rows have probabilities."""
    (batch,) = query(_KNOWN, rows=str(rows), probabilities=str(probabilities))
    return int(batch.column(0)[0].as_py())


class Contradiction(NamedTuple):
    """An id with probabilities that is that of different texts in two files."""

    example_id: str
    file: int
    text: str
    other_file: int
    other_text: str


def contradiction(files: Sequence[Path], probabilities: Path) -> Contradiction | None:
    """The first one among files of rows with example_id and text; None if there is none."""
    for batch in query(_CONTRADICTED, rows=list(map(str, files)), probabilities=str(probabilities)):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            return Contradiction(*row)
    return None


def by_name(values: Floats, classes: tuple[str, ...], wanted: tuple[str, ...]) -> Floats:
    """Reorder `(..., classes)` to `(..., wanted)` by name, so that rows sum to 1; missing classes get probability 0.

    Raises DataError for a class that is not in `wanted`, or for a row of zeros.
    """
    if unknown := [name for name in classes if name not in wanted]:
        raise DataError(f"'{unknown[0]}' is not a class; allowed: {listed(wanted)}")
    filled = np.concatenate([values, np.zeros((*values.shape[:-1], 1))], axis=-1)
    ordered = filled[..., [classes.index(name) if name in classes else -1 for name in wanted]].astype(np.float64)
    totals = ordered.sum(axis=-1, keepdims=True)
    if not (totals > 0).all():
        raise DataError("a row's probabilities are all 0")
    scaled: Floats = ordered / totals
    return scaled
