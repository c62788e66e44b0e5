"""The records that cross module boundaries. All are frozen, and all rows have an `example_id`."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Label = str
"""A label in its canonical, lossless text form, as the problem's `encode` returns it (JSON for slots, a class name for
classification). Rows store labels in this form, and only the problem parses it."""
Progress = Callable[[int, int, str], None]
"""How far a step is: called with (done, total, note), for example `120, 480, "loss 0.31"`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set. `label` is the gold label, or None in the unlabeled pool."""

    example_id: str
    text: str
    label: Label | None = None
    group: str | None = None
    """Scores are also reported by group, such as the question that an answer belongs to."""
    rationale: str | None = None
    """Why the gold label is what it is, if somebody wrote that down."""


@dataclass(frozen=True, slots=True)
class RecordedCompletion:
    """A teacher's raw output for one example."""

    example_id: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A completion that is not a valid label: a typed outcome, kept with its raw text."""

    reason: str
    """A short code, counted in reports: `unknown-slot`, `words-not-in-request`, `unbalanced-brackets` ..."""
    detail: str
    """One sentence for people that names the wrong part."""
    raw: str


class Record(BaseModel):
    """Base of the records that travel through Prefect and into manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(Record):
    """A reference to an artifact. Tasks exchange nothing else."""

    uri: str
    kind: str
    key: str
    rows: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    """The few scalars that decide how a run continues (a verdict), so that it needs no I/O."""


class Score(Record):
    """A metric's value with its interval and number of rows."""

    metric: str
    value: float
    low: float
    """Lower end of the 95 % percentile-bootstrap interval over rows."""
    high: float
    n: int
    """Rows scored."""


class Performed(Record):
    """A step as performed in a run."""

    name: str
    status: Literal["HIT", "MADE"]
    seconds: float
    """Wall time in this run."""
    scores: dict[str, float] = Field(default_factory=dict)


def digest(value: object) -> str:
    """sha256 of the canonical JSON (sorted keys, no white space, UTF-8) of `value`, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
