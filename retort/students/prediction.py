"""Labels and probabilities from a trained encoder."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from retort.models.device import Device
from retort.problems import Problem
from retort.students.base import Prediction as Prediction
from retort.students.base import Progress, decided
from retort.students.batching import token_batches
from retort.students.encoder import EncodedRow, Encoder, encode_all

WINDOW_ROWS = 8192
"""Rows that are sorted by length together; bounds memory, whatever the pool's size."""


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
    """Predictions in the order of `texts`, `total` of them, streamed window by window."""
    encoder.model.to(device.name).eval()  # type: ignore[arg-type]
    iterator, done = iter(texts), 0
    while window := list(islice(iterator, WINDOW_ROWS)):
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
    """Units beyond the student's reach get the uniform distribution."""
    if (row.positions >= 0).all():
        return probabilities
    classes = probabilities.shape[1]
    whole = np.full((len(row.positions), classes), 1 / classes, dtype=np.float32)
    whole[row.positions >= 0] = probabilities
    return whole
