"""Divides rows among the roles: the labeled set, the test rows and the pool."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retort.errors import DataError

MOST_LABELED = 50
MOST_TEST = 1000

Row = Mapping[str, Any]


class Shares(NamedTuple):
    """Rows with a label, by the role that they get."""

    labeled: list[Row]
    test: list[Row]
    rest: list[Row]


def shares(rows: Iterable[Row], label: str, *, with_test: bool) -> Shares:
    """At most 50 rows for the labeled set, of every label one before any has two; at most 1,000 of the others, and at
    least as many as the labeled set has, for the test (none unless `with_test`). Which rows does not depend on their
    order.

    Raises DataError for fewer than 8 rows (4 without a test).
    """
    shuffled = sorted(rows, key=lambda row: hashlib.sha256(_line(row)).digest())
    least = 8 if with_test else 4
    if len(shuffled) < least:
        have = "1 row has" if len(shuffled) == 1 else f"{len(shuffled)} rows have"
        raise DataError(f"{have} a label; at least {least} are needed, and 50 are a good start")
    ordered = list(_one_of_each_first(shuffled, label))
    num_labeled = min(MOST_LABELED, len(ordered) // 2 if with_test else len(ordered))
    num_test = min(MOST_TEST, len(ordered) - num_labeled) if with_test else 0
    if len(ordered) > 2 * num_labeled:  # the pool needs rows too, if no file of its own brings them
        num_test = min(num_test, max(num_labeled, len(ordered) // 5))
    end = num_labeled + num_test
    return Shares(ordered[:num_labeled], ordered[num_labeled:end], ordered[end:])


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write the rows as JSON lines; returns how many."""
    count = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(_line(row))
            count += 1
    return count


def _one_of_each_first(rows: list[Row], label: str) -> Iterator[Row]:
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[str(row[label])].append(row)
    for turn in range(max(map(len, by_label.values()))):
        yield from (same[turn] for same in by_label.values() if turn < len(same))


def _line(row: Row) -> bytes:
    """The row in JSON; those of Parquet files are mappings but no dicts."""
    return json.dumps(dict(row), ensure_ascii=False, default=str).encode() + b"\n"
