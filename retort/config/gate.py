"""The requirements that a new student must meet to become the champion."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from retort.config.base import Metric, Settings, Text


class SliceConfig(Settings):
    """Test rows on which the new student must reach a minimum score. Rows must match all given criteria."""

    name: Text
    """Name shown in reports and verdicts."""
    pattern: Text | None = None
    """Regular expression to search for in the row's text."""
    label: Text | None = None
    """Gold class (for multi-label: one of them), or gold intent for slots."""
    metric: Metric | None = None
    """Metric of the slice. Default: the deciding metric."""
    floor: Annotated[float, Field(ge=0, le=1)]
    """Minimum score on these rows, from 0 to 1."""
    min_rows: Annotated[int, Field(ge=1)] = 1
    """Minimum number of test rows in the slice; the gate refuses with fewer, since they prove nothing."""

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
    """A student replaces the champion only if it meets all of these requirements, on the same test rows."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Minimum gain over the champion in the deciding metric, from -1 to 1; negative lets a slightly worse one pass."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Minimum share of paired bootstrap resamples in which the gain exceeds `min_gain`."""
    slices: list[SliceConfig] = Field(default=[])
    """Minimum scores on subsets of the test rows."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Maximum median latency for one row on one CPU thread, in milliseconds."""
    max_megabytes: Annotated[float, Field(gt=0)] | None = None
    """Maximum size of the weights, in megabytes (10^6 bytes)."""

    @model_validator(mode="after")
    def _tells_slices_apart(self) -> Self:
        names = [part.name for part in self.slices]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"slices: the name '{twice}' stands for two slices; each needs its own")
        return self
