"""What every recipe's report has in common: the facts of a run, for pages, terminal, MLflow and `run --json` alike."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

from retort.artifacts.verdicts import Verdict
from retort.config.base import Metric
from retort.records.base import Record


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Summary(Record):
    """The facts of a run."""

    picture_key: ClassVar[str]
    """Name of the picture among a flow run's artifacts."""

    name: str
    metrics: tuple[Metric, ...]
    """The deciding one first."""
    compute_seconds: float
    """Of everything that the run rests on, whether made now or found in the store."""
    model_uri: str
    """Address of the final student's artifact."""
    model_key: str
    made_at: str
    """When the final student was finished, ISO 8601 in UTC: a report made again says the same."""
    made_with: dict[str, str | int | float | bool]
    """Device, precision, package versions of the final student."""
    config: dict[str, Any]
    gate: Verdict | None = None
    """None where there is no registry to promote in."""
    champion: str | None = None
    """The registered version that the final student met; None where none reigned."""

    @property
    @abstractmethod
    def conclusion(self) -> str:
        """What came out, in one or two sentences."""

    @property
    @abstractmethod
    def data_digest(self) -> str:
        """Changes when any row of any role does."""

    @abstractmethod
    def tables(self) -> dict[str, Table]:
        """Result tables by their names among a flow run's artifacts."""

    @abstractmethod
    def final_as_json(self) -> dict[str, object]:
        """`final` in what `retort run --json` prints; other programs rely on its shape."""


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


def verdict_lines(summary: Summary) -> list[str]:
    """The verdict, and each check where there was something to decide."""
    if summary.gate is None:
        return []
    checks = [] if summary.gate.outcome == "reigns" else summary.gate.reasons
    return [verdict_text(summary.gate, summary.champion), *(f"- {reason}" for reason in checks)]
