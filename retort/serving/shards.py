"""`retort predict` in shards: a file's texts are split, each shard is labeled by a step of its own, on any worker, and
the answers are written in the order of the file, the same as without shards."""

from collections.abc import Iterator, Sequence
from itertools import chain

from retort.artifacts.shards import NUM_ROWS, ShardOutcomes, ShardRows, SplitRows
from retort.data import fingerprint
from retort.errors import ConfigError
from retort.io.parquet import EXAMPLES, Row, read_rows, write_rows
from retort.records.base import ArtifactRef
from retort.records.result import StudentFingerprint
from retort.serving.addresses import FoundStudent
from retort.serving.answers import PredictionRecord, answer
from retort.serving.files import PredictionJob, set_aside, windows, write_answers
from retort.serving.texts import STANDARD_INPUT, Fields, Tally, TextRow, read_texts
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.steps.cross_label import LabelShard
from retort.store import StepOutput

SET_ASIDE = "set_aside"
"""The entry of the split's `details` with the number of rows that cannot be labeled, by reason."""


class SplitTexts(Step):
    """Split the texts of a file into shards for a student. Rows that cannot be labeled are told on standard error."""

    kind = "split"
    version = 1
    artifact = SplitRows

    content: str
    """Fingerprint of the source."""
    fields: Fields
    rows_of_shard: int
    """A shard ends with the window in which it has so many."""
    source: Runtime[str]

    def run(self, context: StepContext) -> StepOutput:
        tally, sizes = Tally(), list[list[int]]()
        taken = windows(set_aside(read_texts(self.source, self.fields), tally))
        for first in taken:
            sizes.append([])
            rows = self._shard(chain([first], taken), sizes[-1])
            write_rows(context.folder / f"{len(sizes) - 1:06d}.parquet", EXAMPLES, rows)
        details = {NUM_ROWS: sizes, SET_ASIDE: dict(tally.reasons)}
        return StepOutput(rows=sum(map(sum, sizes)), details=details)

    def _shard(self, taken: Iterator[list[TextRow]], sizes: list[int]) -> Iterator[Row]:
        for window in taken:
            sizes.append(len(window))
            yield from ({"example_id": row.row_id, "text": row.text} for row in window)
            if sum(sizes) >= self.rows_of_shard:
                return


def split_texts(job: PredictionJob, fields: Fields, rows_of_shard: int) -> SplitTexts:
    """Reads the source once to fingerprint it. Raises ConfigError for standard input, which can be read only once."""
    if job.source == STANDARD_INPUT:
        raise ConfigError("--shard-rows: standard input cannot be split; give a file")
    content = fingerprint(job.source, None)
    return SplitTexts(
        name="predict/split", content=content, fields=fields, rows_of_shard=rows_of_shard, source=job.source
    )


def text_shards(job: PredictionJob, found: FoundStudent, split: ArtifactRef) -> list[LabelShard]:
    """The steps that label the shards."""
    manifest, about = found.store.manifest_of(split), StudentFingerprint(found.manifest.fingerprint)
    parts = zip(manifest.files, manifest.details[NUM_ROWS], strict=True)
    return [
        LabelShard(
            name=f"predict/shard-{number}",
            problem=found.manifest.fingerprint["params"]["problem"],
            student_kind=about.kind,
            max_length=about.max_length,
            writes_text=about.writes_text,
            student=found.store.ref(found.manifest),
            probabilities=job.probabilities,
            content=file.sha256,
            windows=tuple(sizes) if len(sizes) > 1 else (),
            rows=ShardRows(split=split, file=file.path),
        )
        for number, (file, sizes) in enumerate(parts)
    ]


def gather_answers(
    job: PredictionJob,
    found: FoundStudent,
    split: ArtifactRef,
    shards: Sequence[LabelShard],
    made: Sequence[ArtifactRef],
) -> Tally:
    """Write the answers, from what the shards made. Raises RetortError if too many rows were set aside."""
    # Imports torch, which takes seconds; the errors before should not wait for it.
    from retort.serving.student import answered, problem_of

    problem, tally = problem_of(found), Tally()
    tally.reasons.update(found.store.manifest_of(split).details[SET_ASIDE])

    def answers() -> Iterator[PredictionRecord]:
        for shard, ref in zip(shards, made, strict=True):
            rows = read_rows(shard.rows.path(found.store))
            for row, outcome in zip(rows, ShardOutcomes.open(found.store, ref).outcomes(), strict=True):
                prediction, text = answered(problem, row["text"], outcome), row["text"]
                yield {"id": row["example_id"], **answer(problem, text, prediction, probabilities=job.probabilities)}
                tally.labeled += 1

    write_answers(job, problem, answers(), tally)
    return tally
