"""A grid of tiny students: the settings tried, and the students of the best one on the dev rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retort.artifacts.base import Artifact
from retort.records.base import Record

if TYPE_CHECKING:
    from retort.students.tiny.vocabulary import Vocabulary

GRID, WEIGHTS = "grid.json", "students.safetensors"


class TriedSetting(Record):
    """A setting of an arm with its scores on the dev rows over all seeds."""

    setting: dict[str, Any]
    """The fields of `retort.students.tiny.shape.Setting` other than the seed."""
    dev_accuracy: float
    dev_accuracies: tuple[float, ...]
    """One per seed."""
    dev_loss: float
    """In nats."""
    epochs: tuple[int, ...]


@dataclass(frozen=True)
class Grid(Artifact):
    kind = "grids"

    def tried(self) -> list[TriedSetting]:
        return [TriedSetting.model_validate(one) for one in self._grid["tried"]]

    @property
    def best(self) -> int:
        """Index of the kept setting."""
        return int(self._grid["best"])

    @property
    def seeds(self) -> list[int]:
        seeds: list[int] = self._grid["seeds"]
        return seeds

    def students(self) -> tuple["Vocabulary", list[dict[str, Any]]]:
        """Return (vocabulary, each seed's weights)."""
        from safetensors.numpy import load_file

        from retort.students.tiny.vocabulary import Vocabulary

        kept = self._grid["vocabulary"]
        vocabulary = Vocabulary(**{**kept, "fields": tuple(kept["fields"]), "words": tuple(kept["words"])})
        weights: list[dict[str, Any]] = [{} for _ in self.seeds]
        for path, array in load_file(self.folder / WEIGHTS).items():
            at, _, name = path.partition("/")
            weights[int(at)][name] = array
        return vocabulary, weights

    @property
    def _grid(self) -> dict[str, Any]:
        grid: dict[str, Any] = json.loads((self.folder / GRID).read_text(encoding="utf-8"))
        return grid


def write_grid(
    folder: Path,
    tried: Sequence[TriedSetting],
    best: int,
    seeds: Sequence[int],
    vocabulary: "Vocabulary",
    weights: Sequence[dict[str, Any]],
) -> None:
    """`weights` are those of the best setting's students, one per seed."""
    from safetensors.numpy import save_file

    tensors = {
        f"{at}/{name}": np.ascontiguousarray(array) for at, one in enumerate(weights) for name, array in one.items()
    }
    save_file(tensors, folder / WEIGHTS)
    grid = {"tried": [one.model_dump() for one in tried], "best": best, "seeds": list(seeds)}
    (folder / GRID).write_text(json.dumps({**grid, "vocabulary": asdict(vocabulary)}, ensure_ascii=False))
