"""Labels that a teacher or a student gave to the pool, and what got none."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retort.artifacts.base import Artifact
from retort.artifacts.examples import ROWS as ROWS
from retort.artifacts.examples import Examples
from retort.io.parquet import FAILURES, Row, read_rows, write_rows
from retort.records.base import ArtifactRef, ParseFailure
from retort.store import Store

OWN_ROWS = "labeled.parquet"
"""An LLM teacher's labels of the labeled set, each made with the other rows as demonstrations."""
FAILED_ROWS = "failures.parquet"
TEACHER_TOKENS = "teacher_tokens.parquet"
"""The teacher's likeliest tokens, where `sampling.top_logprobs` asked for them; see `retort.teachers.top_logprobs`."""


@dataclass(frozen=True)
class Pseudolabels(Artifact):
    kind = "pseudolabels"

    @property
    def path(self) -> Path:
        return self.folder / ROWS

    @property
    def teacher_tokens(self) -> Path | None:
        path = self.folder / TEACHER_TOKENS
        return path if path.exists() else None

    def rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        """In the pool's order; rows without a label are left out."""
        return read_rows(self.path, columns)

    def own_rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        """See `OWN_ROWS`; a row without a label has the label None."""
        return read_rows(self.folder / OWN_ROWS, columns)

    def failures(self) -> Iterator[Row]:
        """What was set aside: example_id, reason, detail, raw."""
        path = self.folder / FAILED_ROWS
        return read_rows(path) if path.exists() else iter(())


def labeled_rows(store: Store, ref: ArtifactRef) -> Iterator[Row]:
    """Rows with their labels: of pseudolabels, or the gold ones of examples."""
    if ref.kind == Examples.kind:
        return Examples.open(store, ref).gold_rows()
    return Pseudolabels.open(store, ref).rows()


def open_rows(store: Store, ref: ArtifactRef) -> Examples | Pseudolabels:
    """Examples, or pseudolabels whose labels are then not looked at."""
    return (Examples if ref.kind == Examples.kind else Pseudolabels).open(store, ref)


def write_failures(folder: Path, failures: Mapping[str, ParseFailure]) -> None:
    """What was set aside, by example_id, with its raw text and the reason."""
    write_rows(folder / FAILED_ROWS, FAILURES, failure_rows(failures.items()))


def failure_rows(failures: Iterable[tuple[str, ParseFailure]]) -> Iterator[Row]:
    return (
        {"example_id": example_id, "reason": one.reason, "detail": one.detail, "raw": one.raw}
        for example_id, one in failures
    )
