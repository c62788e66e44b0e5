"""What was asked of people, kept in the store until the answers come back."""

import re
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from retort.config import Metric, Problem
from retort.errors import ConfigError, DamagedArtifact
from retort.problems.base import Floats
from retort.records.base import Record
from retort.store import Store

REVIEWS = "reviews"
Purpose = Literal["disagreement", "estimate"]


class ReviewRow(Record):
    example_id: str
    text: str
    said: dict[str, str] = Field(default_factory=dict)
    """Labels by who gave them (`teacher`, `stage 1`, `student`), rendered; empty where they would sway people."""
    predicted: str | None = None
    """Of a test row: the student's label."""
    chance: float = 0.0
    """Of a test row: its chance to be drawn first."""


class Review(Record):
    review_id: str
    purpose: Purpose
    made_at: str
    """ISO 8601, UTC."""
    problem: Problem
    """That of the student, with its schema."""
    student: str
    """Address of the student that the test rows were drawn for."""
    rows: tuple[ReviewRow, ...]
    """In the order of the file; test rows in that of the draws."""
    population: int
    """The rows that they were chosen from."""
    known: dict[Metric, list[float]] = Field(default_factory=dict)
    """Of test rows: the sums of the statistics over all of them, if every prediction were right."""

    @property
    def sums(self) -> dict[Metric, Floats]:
        return {metric: np.array(values) for metric, values in self.known.items()}


def keep(store: Store, name: str, review: Review) -> None:
    store.place.write(f"{REVIEWS}/{name}/{review.review_id}.json", review.model_dump_json().encode())


def find(store: Store, name: str, review_id: str) -> Review:
    """Raises ConfigError if there is no such review of this config."""
    path = f"{REVIEWS}/{name}/{review_id}.json"
    try:
        if not re.fullmatch("[0-9a-f]{12}", review_id):
            raise FileNotFoundError
        return Review.model_validate_json(store.place.read(path))
    except FileNotFoundError:
        raise ConfigError(f"review '{review_id[:40]}': '{name}' has none of this name in {store.root}") from None
    except ValidationError as error:
        raise DamagedArtifact(f"{store.root}/{path} is no review: export the rows again") from error
