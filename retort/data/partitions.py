"""Which cell of the pool a row belongs to, and which cells a student trains on and labels.

A row's cell is a hash of its id, so it stays the same between stages and when the pool grows overnight, and duplicate
ids share a cell. In a large pool the cells are nearly equal in size; in a tiny one, some may be empty. The labeled set
is small, so its folds are as equal as can be (`folds_of`).
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Literal

from retort.io.parquet import Row
from retort.records.base import Record

Scheme = Literal["disjoint", "leave-one-out"]


class Cells(Record):
    """Some cells of a pool."""

    of: int
    """How many cells there are."""
    seed: int
    only: list[int]
    """Numbers of the cells that are meant, each in [0, of)."""


def cell_of(example_id: str, partitions: int, seed: int) -> int:
    """The row's cell, in [0, partitions)."""
    return _hashed(example_id, seed) % partitions


def _hashed(example_id: str, seed: int) -> int:
    digest = blake2b(f"{seed}:{example_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def train_cells(scheme: Scheme, partitions: int, student: int) -> tuple[int, ...]:
    """The cells that student number `student`, in [0, partitions), is trained on."""
    return (student,) if scheme == "disjoint" else _others(partitions, student)


def label_cells(scheme: Scheme, partitions: int, student: int) -> tuple[int, ...]:
    """The cells that the student labels: all those it was not trained on.

    With leave-one-out, one student labels each cell; with disjoint, `partitions - 1` students do.
    """
    return _others(partitions, student) if scheme == "disjoint" else (student,)


def _others(partitions: int, student: int) -> tuple[int, ...]:
    return tuple(cell for cell in range(partitions) if cell != student)


def in_cells(rows: Iterator[Row], cells: Cells | None) -> Iterator[Row]:
    """The rows whose cell is among `cells`; all of them if it is None."""
    if cells is None:
        return rows
    only = set(cells.only)
    return (row for row in rows if cell_of(row["example_id"], cells.of, cells.seed) in only)


def folds_of(ids: Sequence[str], number: int, seed: int) -> list[list[int]]:
    """Splits rows into folds, which differ in size by at most one; returns the indices of each fold's rows. There are
    as many folds as rows if that is less."""
    order = sorted(range(len(ids)), key=lambda at: _hashed(ids[at], seed))
    return [sorted(order[fold::number]) for fold in range(min(number, len(ids)))]
