"""What all recipes' reports have in common: the facts of a run, for pages, terminal, MLflow and `run --json`."""

import re
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from retort.artifacts.hygiene import PoolHygiene
from retort.artifacts.verdicts import Verdict
from retort.config.base import Metric
from retort.records.base import Record, digest
from retort.records.set_aside import SetAside
from retort.report.course import ArmCost, Curve, Span
from retort.report.quality import Reliability, Slice


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Summary(Record):
    """The facts of a run."""

    picture_key: ClassVar[str]
    """The picture's key among a flow run's artifacts."""

    name: str
    metrics: tuple[Metric, ...]
    """The deciding metric first."""
    compute_seconds: float
    """Compute time of everything that the run depends on, whether made now or found in the store."""
    model_uri: str
    """Address of the final student's artifact."""
    model_key: str
    made_at: str
    """When the final student was finished, ISO 8601 in UTC, so that a report made again says the same."""
    made_with: dict[str, str | int | float | bool]
    """Device, precision and package versions that the final student was trained with."""
    config: dict[str, Any]
    gate: Verdict | None = None
    """None if there is no registry to promote in."""
    champion: str | None = None
    """The registered version that the final student was compared with; None if there was no champion."""
    set_aside: SetAside | None = None
    """The rows of the pool that cannot be used; None if there are none."""
    spans: tuple[Span, ...] = ()
    """What was made when and where; like the fields below, empty in reports of before it was kept."""
    curves: tuple[Curve, ...] = ()
    """Losses of the students that were trained with batches."""
    arm_costs: tuple[ArmCost, ...] = ()
    reliability: dict[str, tuple[Reliability, ...]] = Field(default_factory=dict)
    """By test set: the final student's, then others'."""
    slices: dict[str, tuple[Slice, ...]] = Field(default_factory=dict)
    """By test set: the parts on which the final student is worst, the worst first."""
    hygiene: PoolHygiene | None = None
    """Near-duplicates, leakage, suspicious labels and drift; None if nobody looked."""

    @property
    @abstractmethod
    def conclusion(self) -> str:
        """The outcome in one or two sentences."""

    @property
    def headline(self) -> str:
        """The first sentence of the conclusion."""
        return re.split(r"(?<=\.)\s", self.conclusion, maxsplit=1)[0]

    @property
    @abstractmethod
    def data_digest(self) -> str:
        """A digest that changes when any row of any role does."""

    @abstractmethod
    def tables(self) -> dict[str, Table]:
        """Result tables by their keys among a flow run's artifacts."""

    @abstractmethod
    def final_as_json(self) -> dict[str, object]:
        """`final` in the output of `retort run --json`. Other programs rely on its shape."""


def as_key(name: str) -> str:
    """A name as part of a Prefect artifact's key, which has only lowercase letters, digits and dashes. Names of other
    scripts are told apart by a digest."""
    key = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return key if name.isascii() and key else f"{key}-{digest(name)[:6]}".strip("-")


def verdict_text(verdict: Verdict, champion: str | None) -> str:
    """The gate's verdict in one sentence."""
    match verdict.outcome:
        case "passed":
            return f"The gate lets the final student take the place of the champion, version {champion}."
        case "first":
            return "The gate lets the final student become the first champion."
        case "reigns":
            return f"The final student is the champion already, version {champion}."
    place = f"take the place of the champion, version {champion}" if champion else "become the first champion"
    failed, made = len(verdict.refusals), len(verdict.reasons)
    return f"The gate does not let the final student {place}: {failed} of {made} checks failed."


def set_aside_line(summary: Summary) -> str:
    """How many rows of the pool cannot be used, and why; empty if there are none."""
    return f"Pool: {summary.set_aside.text}; the report shows the first." if summary.set_aside else ""


def verdict_lines(summary: Summary) -> list[str]:
    """The verdict, then one line per check unless the final student already is the champion."""
    if summary.gate is None:
        return []
    checks = [] if summary.gate.outcome == "reigns" else summary.gate.reasons
    return [verdict_text(summary.gate, summary.champion), *(f"- {reason}" for reason in checks)]
