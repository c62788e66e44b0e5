"""A teacher's precomputed class probabilities: JSON Lines, matched to rows by id and to classes by name."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from retort.data.reading import read_rows_of
from retort.errors import DataError
from retort.problems.base import Floats, listed

TOLERANCE = 0.01
"""How much a row's sum may differ from 1, to allow for probabilities rounded to a few digits."""


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
    places: dict[str, str] = {}
    for place, row in read_rows_of(address, endpoint_url):
        example_id = row.get("id")
        if not isinstance(example_id, str | int) or isinstance(example_id, bool):
            raise DataError(f"{place}: the id ('id') is {example_id!r:.60}, where a string or a number is needed")
        if (first := places.setdefault(str(example_id), place)) != place:
            raise DataError(f"{place}: the id '{example_id}' is already that of {first}")
        yield Probabilities(str(example_id), _distribution(place, row.get("probabilities"), classes))


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
