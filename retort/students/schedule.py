"""Which rows each optimizer step of a training computes."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from retort.config import TrainingConfig
from retort.students.batching import Indices
from retort.students.training_data import TrainingData


class Schedule:
    """The batches of all epochs, fixed in advance: of as many epochs as `training` asks for, or of more until there are
    `min_updates` batches. The last epoch may be incomplete. Only one epoch's batches are in memory: they are made once
    to be counted, and again, from the same state of the generator, when their epoch begins."""

    def __init__(self, data: TrainingData, training: TrainingConfig, seed: int) -> None:
        self._data, self._budget_tokens = data, training.batch_tokens
        self._generator = np.random.default_rng(seed)
        self._parts: list[tuple[Mapping[str, Any], int]] = []
        """For each epoch, the generator's state at its beginning and its number of batches."""
        self.epochs = training.epochs
        per_epoch = self._add(min(1.0, training.epochs))
        for done in range(1, math.ceil(training.epochs)):
            self._add(min(1.0, training.epochs - done))
        if len(self) < training.min_updates:
            self.epochs = training.min_updates / per_epoch
            while (missing := training.min_updates - len(self)) > 0:
                self._add(1.0, missing)

    def __len__(self) -> int:
        return sum(count for _, count in self._parts)

    def after(self, step: int) -> Iterator[Indices]:
        """The batches without the first `step`."""
        for state, count in self._parts:
            if step < count:
                self._generator.bit_generator.state = state
                yield from self._epoch()[step:count]
            step = max(0, step - count)

    def _add(self, share: float, most: float = math.inf) -> int:
        """Add a share of an epoch, of at most so many batches. Returns how many a whole epoch has."""
        state = self._generator.bit_generator.state
        whole = len(self._epoch())
        self._parts.append((state, int(min(math.ceil(whole * share), most))))
        return whole

    def _epoch(self) -> list[Indices]:
        return self._data.batches(self._budget_tokens, self._generator)
