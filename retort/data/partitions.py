"""Which cell of the pool a row belongs to, and which cells a student trains on and labels.

A row's cell is a hash of its id, so it never changes: not between stages, not when the pool grows overnight, and
an id that occurs twice lies in one cell. Cells of a large pool are nearly equal; one of a tiny pool may be empty.
"""

from hashlib import blake2b
from typing import Literal

Scheme = Literal["disjoint", "leave-one-out"]


def cell_of(example_id: str, partitions: int, seed: int) -> int:
    """The row's cell in [0, partitions)."""
    digest = blake2b(f"{seed}:{example_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % partitions


def train_cells(scheme: Scheme, partitions: int, student: int) -> tuple[int, ...]:
    """Cells that the student of this number, in [0, partitions), is trained on."""
    return (student,) if scheme == "disjoint" else _others(partitions, student)


def label_cells(scheme: Scheme, partitions: int, student: int) -> tuple[int, ...]:
    """Cells that it labels: all it was not trained on.

    leave-one-out: each cell has one labeler. disjoint: each has `partitions - 1`.
    """
    return _others(partitions, student) if scheme == "disjoint" else (student,)


def _others(partitions: int, student: int) -> tuple[int, ...]:
    return tuple(cell for cell in range(partitions) if cell != student)
