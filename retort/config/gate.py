"""What a new student must prove before it becomes the champion."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from retort.config.base import Metric, Settings, Text


class SliceConfig(Settings):
    """Test rows on which the new student must not fall below a floor. A row must match all that is given."""

    name: Text
    """For reports and verdicts."""
    pattern: Text | None = None
    """A regular expression found somewhere in the row's text."""
    label: Text | None = None
    """The gold class; for slots the gold intent."""
    metric: Metric | None = None
    """Left out: the deciding one."""
    floor: Annotated[float, Field(ge=0, le=1)]
    """Least score on these rows, as a share of 1."""
    min_rows: Annotated[int, Field(ge=1)] = 1
    """With fewer test rows in the slice the gate refuses: it can prove nothing."""

    @model_validator(mode="after")
    def _selects_rows(self) -> Self:
        if self.pattern is None and self.label is None:
            raise ValueError("a slice needs a pattern or a label")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern '{self.pattern}' is no regular expression: {error}") from None
        return self


class GateConfig(Settings):
    """The champion is replaced only by a student that passes all of these, on the same test rows."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Least gain over the champion in the deciding metric, as a share of 1; below 0 lets a slightly worse one pass."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Least share of paired bootstrap resamples in which the gain is more than `min_gain`."""
    slices: list[SliceConfig] = Field(default=[])
    """Floors on parts of the test rows."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Most milliseconds for one row on one CPU thread (the median)."""
    max_megabytes: Annotated[float, Field(gt=0)] | None = None
    """Most megabytes (10^6 bytes) of weights."""

    @model_validator(mode="after")
    def _tells_slices_apart(self) -> Self:
        names = [part.name for part in self.slices]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"slices: the name '{twice}' stands for two slices; each needs its own")
        return self
