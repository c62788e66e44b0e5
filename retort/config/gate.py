"""The requirements that a new student must meet to become the champion."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from retort.config.base import ERRORS, Metric, Settings, Text


class SliceConfig(Settings):
    """Test rows on which the new student must reach a score. Rows must match all given criteria."""

    name: Text
    """Name shown in reports and verdicts."""
    pattern: Text | None = None
    """Regular expression to search for in the row's text."""
    label: Text | None = None
    """Gold class (for multi-label: one of them), or gold intent for slots."""
    metric: Metric | None = None
    """Metric of the slice. Default: the deciding metric."""
    floor: Annotated[float, Field(ge=0)]
    """The worst score on these rows that passes: the least, from 0 to 1, or of an error (rmse, mae) the greatest, in
    the unit of the labels."""
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


Limit = Annotated[float | None, Field(ge=0, le=1, exclude_if=lambda limit: limit is None)]


class GateConfig(Settings):
    """A student replaces the champion only if it meets all of these requirements, on the same test rows."""

    min_gain: float = 0.0
    """Minimum gain over the champion in the deciding metric, from -1 to 1; of an error (rmse, mae) by how much less it
    must be, in the unit of the labels. Negative lets a slightly worse one pass."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Minimum share of paired bootstrap resamples in which the gain exceeds `min_gain`."""
    slices: list[SliceConfig] = Field(default=[])
    """Scores that must be reached on subsets of the test rows."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Maximum median latency for one row on one CPU thread, in milliseconds."""
    max_megabytes: Annotated[float, Field(gt=0)] | None = None
    """Maximum size of the weights, in megabytes (10^6 bytes)."""
    max_duplicate_share: Limit = None
    """Maximum share of the pool's rows that nearly repeat an earlier one."""
    max_leaked_share: Limit = None
    """Maximum share of the test rows that are nearly repeated in the pool or the labeled set."""
    max_suspicious_share: Limit = None
    """Maximum share of the teacher's labels that students which were not trained on them confidently contradict."""
    max_drift: Limit = None
    """Maximum drift of tonight's new rows and their labels against the last night: 0 is none, 1 is nothing in common.
    Only what is hardly chance counts."""

    @model_validator(mode="after")
    def _tells_slices_apart(self) -> Self:
        names = [part.name for part in self.slices]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"slices: the name '{twice}' stands for two slices; each needs its own")
        return self

    @property
    def row_limits(self) -> dict[str, float]:
        """The limits on what `hygiene` finds in the rows, by field."""
        names = ("max_duplicate_share", "max_leaked_share", "max_suspicious_share", "max_drift")
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}

    def check_floors(self, deciding: Metric) -> None:
        """Raises ValueError for a gain or score that no system can have: all but `ERRORS` are at most 1."""
        if deciding not in ERRORS and not -1 <= self.min_gain <= 1:
            raise ValueError(f"gate.min_gain = {self.min_gain:g}: a gain in {deciding} is from -1 to 1")
        for place, part in enumerate(self.slices):
            metric = part.metric or deciding
            if metric not in ERRORS and part.floor > 1:
                raise ValueError(f"gate.slices.{place}.floor = {part.floor:g}: a score in {metric} is from 0 to 1")
