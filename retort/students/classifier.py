"""Encoder students, which classify each unit of a text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from retort.config import TrainingConfig
from retort.io.batched import batched
from retort.models.device import Device, place_to_predict
from retort.problems import Problem
from retort.problems.base import Scale, spread
from retort.records.base import Progress
from retort.students.base import Checkpoint, Prediction, Rows, TrainingResult, TrainingRow, decided
from retort.students.batching import WINDOW_ROWS, token_batches
from retort.students.encoder import EncodedRow, Encoder, continue_from, encode_all
from retort.students.training import TrainingRows, train


@dataclass(frozen=True, slots=True)
class Classifier:
    encoder: Encoder
    problem: Problem

    @property
    def model(self) -> PreTrainedModel:
        return self.encoder.model

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.encoder.model.parameters())

    def continue_from(self, folder: Path) -> bool:
        return continue_from(self.encoder, folder)

    def train(
        self,
        rows: Rows,
        training: TrainingConfig,
        *,
        seed: int,
        device: Device,
        micro_batches: int = 1,
        checkpoint: Checkpoint | None = None,
        progress: Progress = lambda done, total, note: None,
        held_out: Rows = (),
    ) -> TrainingResult:
        """See `Student.train`."""
        data = self._encoded(rows)
        history = train(
            self.encoder,
            data,
            training,
            seed=seed,
            device=device,
            micro_batches=micro_batches,
            checkpoint=checkpoint,
            progress=progress,
            held_out=self._encoded(held_out) if held_out else None,
        )
        return TrainingResult(history, {"cut": data.num_cut})

    def _encoded(self, rows: Rows) -> TrainingRows:
        is_soft = isinstance(self.problem, Scale) or any(row.probabilities is not None for row in rows)
        once, again = tee(rows)  # holds no more than a chunk of rows
        encoded = encode_all(self.encoder, self.problem, (row.text for row in once))
        return TrainingRows(encoded, (self._target(row, is_soft) for row in again))

    def _target(self, row: TrainingRow, is_soft: bool) -> NDArray[np.int64] | NDArray[np.float32]:
        """Class indices `(units,)`; for soft labels, probabilities `(units, classes)`, the label's if the row has
        none."""
        if row.probabilities is not None:
            return row.probabilities
        if is_soft:
            return spread(self.problem, row.text, row.label).astype(np.float32)
        return np.asarray(self.problem.targets(row.text, row.label), dtype=np.int64)

    def predict(
        self,
        texts: Iterable[str],
        *,
        device: Device,
        total: int,
        batch_tokens: int = 2048,
        progress: Progress = lambda done, total, note: None,
    ) -> Iterator[Prediction]:
        """See `Student.predict`."""
        return predict(
            self.encoder,
            self.problem,
            texts,
            device=device,
            total=total,
            batch_tokens=batch_tokens,
            progress=progress,
        )

    def save(self, folder: Path) -> None:
        self.encoder.model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)


def predict(
    encoder: Encoder,
    problem: Problem,
    texts: Iterable[str],
    *,
    device: Device,
    total: int,
    batch_tokens: int = 2048,
    progress: Progress = lambda done, total, note: None,
) -> Iterator[Prediction]:
    """Streams one prediction per text, in order, window by window; `total` is the number of texts."""
    place_to_predict(encoder.model, device)
    done = 0
    for window in batched(texts, WINDOW_ROWS):
        rows = list(encode_all(encoder, problem, window))
        probabilities = _window_probabilities(encoder, rows, device, batch_tokens)
        for text, row in zip(window, probabilities, strict=True):
            yield decided(problem, text, row)
        done += len(window)
        progress(done, total, "rows")


@torch.inference_mode()
def _window_probabilities(
    encoder: Encoder, rows: list[EncodedRow], device: Device, batch_tokens: int
) -> list[NDArray[np.float32]]:
    """`(units, classes)` for each row."""
    lengths = np.array([len(row.token_ids) for row in rows])
    result: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(rows)
    for batch in token_batches(lengths, batch_tokens):
        members = [rows[i] for i in batch]
        with device.autocast():
            logits = encoder.unit_logits(members)
        probabilities = logits.softmax(-1).cpu().numpy()
        ends = np.cumsum([(row.positions >= 0).sum() for row in members])
        for index, row, part in zip(batch, members, np.split(probabilities, ends[:-1]), strict=True):
            result[index] = _with_cut_units(row, part)
    return result


def _with_cut_units(row: EncodedRow, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Adds the truncated units, with the uniform distribution: `(kept units, classes)` -> `(units, classes)`."""
    if (row.positions >= 0).all():
        return probabilities
    classes = probabilities.shape[1]
    whole = np.full((len(row.positions), classes), 1 / classes, dtype=np.float32)
    whole[row.positions >= 0] = probabilities
    return whole
