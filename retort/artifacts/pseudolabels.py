"""Labels that a teacher or student gave to the pool, and the rows that got none."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retort.artifacts.base import Artifact
from retort.artifacts.examples import ROWS as ROWS
from retort.artifacts.examples import Examples
from retort.io.parquet import FAILURES, Row, RowWriter, read_rows, write_rows
from retort.records.base import ArtifactRef, ParseFailure
from retort.store import Store

OWN_ROWS = "labeled.parquet"
"""An LLM teacher's labels for the labeled set, each row labeled with the others as demonstrations."""
FAILED_ROWS = "failures.parquet"
TEACHER_TOKENS = "teacher_tokens.parquet"
"""The teacher's likeliest tokens, if `sampling.top_logprobs` is set; see `retort.teachers.top_logprobs`."""


RATIONALE_ROWS = "rationales.parquet"
"""Why the labels are what they are, if `teacher.rationales` is set: example_id, rationale."""


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
        """Labeled rows in the order of the pool, without those that got no label."""
        return read_rows(self.path, columns)

    def own_rows(self, columns: list[str] | None = None) -> Iterator[Row]:
        """See `OWN_ROWS`; a row without a label has the label None."""
        return read_rows(self.folder / OWN_ROWS, columns)

    def rationales(self) -> Iterator[Row]:
        """example_id and rationale, in the order of the pool; empty if the teacher was not asked for them."""
        path = self.folder / RATIONALE_ROWS
        return read_rows(path) if path.exists() else iter(())

    def failures(self) -> Iterator[Row]:
        """The rows that were set aside: example_id, reason, detail, raw."""
        path = self.folder / FAILED_ROWS
        return read_rows(path) if path.exists() else iter(())


def labeled_rows(store: Store, ref: ArtifactRef, columns: list[str] | None = None) -> Iterator[Row]:
    """Rows with labels: pseudolabels, or the gold labels of examples."""
    if ref.kind == Examples.kind:
        return Examples.open(store, ref).gold_rows(columns)
    return Pseudolabels.open(store, ref).rows(columns)


def open_rows(store: Store, ref: ArtifactRef) -> Examples | Pseudolabels:
    """Open examples, or pseudolabels for a caller that does not use their labels."""
    return (Examples if ref.kind == Examples.kind else Pseudolabels).open(store, ref)


@contextmanager
def written_failures(folder: Path) -> Iterator[Callable[[str, ParseFailure], None]]:
    """Yield what writes a row that was set aside, by its example_id. There is a file if there is none, too."""
    path = folder / FAILED_ROWS
    with RowWriter(path, FAILURES) as writer:
        yield lambda example_id, failure: writer.write(next(failure_rows([(example_id, failure)])))
    if not path.exists():
        write_rows(path, FAILURES, ())


def failure_rows(failures: Iterable[tuple[str, ParseFailure]]) -> Iterator[Row]:
    return (
        {"example_id": example_id, "reason": one.reason, "detail": one.detail, "raw": one.raw}
        for example_id, one in failures
    )
