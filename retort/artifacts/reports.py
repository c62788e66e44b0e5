"""A run's report, and where to find the run in MLflow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from retort.artifacts.base import Artifact
from retort.records.base import Record

SUMMARY, HTML, MARKDOWN = "summary.json", "report.html", "report.md"
PICTURES = "pictures.json"
SCORES = "scores"
"""The picture with the scores of all systems, one panel per metric or test set."""
PNG, SVG = f"{SCORES}.png", f"{SCORES}.svg"
PAGES = (HTML, MARKDOWN, PNG, SVG)
TRACKED = "tracking.json"

S = TypeVar("S", bound=Record)


class Picture(Record):
    """A picture in the report's folder, `KEY.png` and `KEY.svg`."""

    key: str
    """Lowercase letters, digits and dashes, as Prefect wants them."""
    title: str
    says: str
    """What to see in it."""
    in_overview: bool = False
    """Whether it is a panel of the picture of the scores."""


@dataclass(frozen=True)
class Report(Artifact):
    kind = "reports"

    def summary(self, form: type[S]) -> S:
        """The facts that the pages are made from. `form` is the recipe's summary type."""
        return form.model_validate_json((self.folder / SUMMARY).read_text(encoding="utf-8"))

    @property
    def markdown(self) -> str:
        return (self.folder / MARKDOWN).read_text(encoding="utf-8")

    def pictures(self) -> list[Picture]:
        """In the order of the page; none in reports of before they were kept."""
        file = self.folder / PICTURES
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        return [Picture.model_validate(one) for one in kept]

    def png(self, key: str) -> Path:
        return self.folder / f"{key}.png"


def write_summary(folder: Path, summary: Record) -> None:
    (folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    text = json.dumps([picture.model_dump() for picture in pictures], ensure_ascii=False, indent=1)
    (folder / PICTURES).write_text(text, encoding="utf-8")


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
