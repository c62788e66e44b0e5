"""Scoring with an exported student, by onnxruntime on one thread, and the measurement of its speed."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.students.tiny.vocabulary import Vocabulary

BATCH_ROWS = 256


class Scorer:
    """An exported student. Raises DataError if the folder does not contain one."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        try:
            kept = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            network = (folder / "model.onnx").read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(f"'{folder}' holds no exported tiny student: {error}") from None
        self.classes: tuple[str, ...] = tuple(kept["classes"])
        self.vocabulary = Vocabulary(tuple(kept["fields"]), kept["buckets"], tuple(kept["words"]), kept["max_words"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

    def probabilities(self, rows: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Class probabilities `(rows, classes)`; a row has one text per field, in the order of `vocabulary.fields`."""
        found = np.zeros((len(rows), len(self.classes)), dtype=np.float32)
        for start in range(0, len(rows), BATCH_ROWS):
            texts = self.vocabulary.encode(rows[start : start + BATCH_ROWS])
            inputs = {"word_ids": texts.word_ids, "field_ids": texts.field_ids}
            (found[start : start + BATCH_ROWS],) = self._session.run(["probabilities"], inputs)
        return found


@dataclass(frozen=True, slots=True)
class Speed:
    latency_ms: float
    """Median milliseconds for a single row, from text to probabilities."""
    rows_per_second: float
    """Throughput in batches of 256, the best of three rounds."""


def measure(score: Callable[[Sequence[Sequence[str]]], object], rows: Sequence[Sequence[str]]) -> Speed:
    """The speed of `score`, whatever it is and however many threads it uses. The first rows warm it up."""
    for row in rows[:5]:
        score([row])
    latencies = [_seconds(score, [row]) for row in rows[:200]]
    batch = [rows[place % len(rows)] for place in range(BATCH_ROWS)]
    best = min(_seconds(score, batch) for _ in range(3))
    return Speed(1000 * statistics.median(latencies), BATCH_ROWS / best)


def _seconds(score: Callable[[Sequence[Sequence[str]]], object], rows: Sequence[Sequence[str]]) -> float:
    started = time.perf_counter()
    score(rows)
    return time.perf_counter() - started
