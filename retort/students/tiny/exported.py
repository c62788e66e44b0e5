"""An exported student as any other student is asked: texts in, labels with their probabilities out."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from retort.data.fields import fields_of
from retort.io.batched import batched
from retort.models.device import Device
from retort.problems.base import Problem
from retort.records.base import Progress
from retort.students.base import Prediction
from retort.students.tiny.scorer import BATCH_ROWS, Scorer


class ExportedStudent:
    """Raises DataError where the folder holds none."""

    def __init__(self, folder: Path, problem: Problem) -> None:
        self.scorer, self._problem = Scorer(folder), problem
        # Columns by name: the problem's classes may have changed since, and what is not known has no probability.
        known = self.scorer.classes
        self._columns = [known.index(name) if name in known else -1 for name in problem.classes]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.scorer.vocabulary.fields

    def predict(
        self,
        texts: Iterable[str],
        *,
        device: Device,
        total: int,
        batch_tokens: int = 0,
        progress: Progress = lambda *_: None,
    ) -> Iterator[Prediction]:
        """In the order of `texts`, each of them fields as `join_fields` writes them. On one CPU thread, whatever the
        device and the batch."""
        done = 0
        for batch in batched(texts, BATCH_ROWS):
            probabilities = self.scorer.probabilities([fields_of(text, self.fields) for text in batch])
            padded = np.concatenate([probabilities, np.zeros((len(batch), 1), dtype=np.float32)], axis=1)
            for row in padded[:, self._columns]:
                label, confidence = self._problem.decide("", row[None].astype(np.float64))
                yield Prediction(label, confidence, row[None])
            done += len(batch)
            progress(done, total, "")
