"""The records that cross boundaries. All are frozen; rows carry an `example_id`, always."""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Label = str
"""A label in its canonical, lossless text: whatever the problem's `encode` gives (JSON for slots, a class name
for classification). Rows store labels in this form; only the problem looks inside."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set. `label` is the gold label, or None in the unlabelled pool."""

    example_id: str
    text: str
    label: Label | None = None
    group: str | None = None
    """What scores are also given by: the question that an answer belongs to."""


@dataclass(frozen=True, slots=True)
class RecordedCompletion:
    """What a teacher wrote for one example, raw."""

    example_id: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A completion that is no label: a typed outcome, kept with its raw text."""

    reason: str
    """A short code, counted in reports: `unknown-slot`, `words-not-in-request`, `unbalanced-brackets` ..."""
    detail: str
    """One sentence for people, naming the offending part."""
    raw: str


class Record(BaseModel):
    """Base of the records that travel through Prefect and into manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(Record):
    """Where an artifact lies: all that ever travels between tasks."""

    uri: str
    kind: str
    key: str
    rows: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    """The few scalars that a flow steers by (a verdict), so that it needs no I/O."""


class Score(Record):
    """A metric's value with what it rests on."""

    metric: str
    value: float
    low: float
    """Lower end of the 95 % percentile-bootstrap interval over rows."""
    high: float
    n: int
    """Rows scored."""


class Performed(Record):
    """A stage as a run met it."""

    name: str
    status: Literal["HIT", "MADE"]
    seconds: float
    """Wall time in this run."""
    scores: dict[str, float] = Field(default_factory=dict)


def digest(value: object) -> str:
    """sha256 of the canonical JSON (sorted keys, no white space, UTF-8) of `value`, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
