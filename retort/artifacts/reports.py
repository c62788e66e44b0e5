"""A run's report, and where to find the run in MLflow."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from retort.artifacts.base import Artifact
from retort.records.base import Record

SUMMARY, HTML, MARKDOWN, PNG, SVG = "summary.json", "report.html", "report.md", "scores.png", "scores.svg"
PAGES = (HTML, MARKDOWN, PNG, SVG)
TRACKED = "tracking.json"

S = TypeVar("S", bound=Record)


@dataclass(frozen=True)
class Report(Artifact):
    kind = "reports"

    def summary(self, form: type[S]) -> S:
        """The facts that the pages are made from. `form` is the recipe's summary type."""
        return form.model_validate_json((self.folder / SUMMARY).read_text(encoding="utf-8"))

    @property
    def markdown(self) -> str:
        return (self.folder / MARKDOWN).read_text(encoding="utf-8")

    @property
    def picture(self) -> Path:
        return self.folder / PNG

    def files(self) -> Iterator[Path]:
        return iter(sorted(self.folder.iterdir()))


def write_summary(folder: Path, summary: Record) -> None:
    (folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")


class Tracked(Record):
    """Where to find a run in MLflow."""

    experiment_id: str
    run_id: str
    url: str
    """URL of the parent run's page; empty for a database without a server."""
    open_with: str
    """The command that shows the run; empty for a server."""
    model: str
    version: str
    verdict: str = ""
    """Key of the gate's verdict that was tagged on the version; empty if there is none."""


@dataclass(frozen=True)
class TrackingRun(Artifact):
    kind = "tracking"

    def tracked(self) -> Tracked:
        return Tracked.model_validate_json((self.folder / TRACKED).read_text(encoding="utf-8"))


def write_tracked(folder: Path, tracked: Tracked) -> None:
    (folder / TRACKED).write_text(tracked.model_dump_json(indent=1), encoding="utf-8")
