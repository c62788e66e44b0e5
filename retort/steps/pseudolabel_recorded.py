"""`pseudolabel` by a recorded teacher: completions that were recorded earlier, read like those that are asked for."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import FAILED_ROWS, RATIONALE_ROWS, ROWS, Pseudolabels, failure_rows
from retort.config import Problem
from retort.config.teachers import Rationales
from retort.data.recorded import Recorded, recorded
from retort.io.parquet import FAILURES, PSEUDOLABELS, RATIONALES, Row, RowWriter, read_rows, write_rows
from retort.io.scratch import scratch
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, ParseFailure, RecordedCompletion
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput, Store
from retort.teachers.rationales import parse_reasoned
from retort.teachers.salvage import Reading, parse_completion


class PseudolabelRecorded(Step):
    """Label the pool with recorded completions. Those that cannot be parsed are set aside with their text and the
    reason."""

    kind = "pseudolabel"
    version = 2
    artifact = Pseudolabels

    problem: Problem
    teacher: Literal["recorded"] = "recorded"
    completions: str
    """Fingerprint of the file."""
    rationales: Rationales = False
    pool: ArtifactRef
    path: Runtime[str]
    endpoint_url: Runtime[str | None]
    min_success_ratio: Runtime[float]

    def run(self, context: StepContext) -> StepOutput:
        counts: Counter[str] = Counter()
        labels: Counter[str] = Counter()

        def rows(told: Recorded) -> Iterator[Row]:
            for row, (reading, rationale) in self._readings(context.store, told):
                example_id = row["example_id"]
                if isinstance(reading.outcome, ParseFailure):
                    counts[reading.outcome.reason] += 1
                    if example_id in told.failures:
                        told.failures[example_id] = reading.outcome
                    else:
                        failed.write(next(failure_rows([(example_id, reading.outcome)])))
                else:
                    labels.update(reading.counted)
                    if rationale is not None:
                        rationales.write({"example_id": example_id, "rationale": rationale})
                    yield {**row, "label": reading.outcome, "confidence": reading.covered, "labeler": "teacher"}
                counts["asked"] += 1

        with scratch("failures") as drafts, recorded(self.path, self.endpoint_url) as told:
            unlabeled = drafts / "unlabeled.parquet"
            with (
                RowWriter(context.folder / RATIONALE_ROWS, RATIONALES) as rationales,
                RowWriter(unlabeled, FAILURES) as failed,
            ):
                labeled = write_rows(context.folder / ROWS, PSEUDOLABELS, rows(told))
            rest = read_rows(unlabeled) if unlabeled.exists() else iter(())
            write_rows(context.folder / FAILED_ROWS, FAILURES, chain(failure_rows(told.failures.items()), rest))
        check_success(self.min_success_ratio, labeled, counts)
        num_failed = counts["asked"] - labeled
        metrics = {"success_share": labeled / counts["asked"]}
        return StepOutput(rows=labeled, counts={**counts, **labels, "failures": num_failed}, metrics=metrics)

    def num_labels(self, store: Store) -> int:
        """How many rows of the pool get a label. For `doctor`: nothing is written."""
        with recorded(self.path, self.endpoint_url) as told:
            readings = (reading for _, (reading, _) in self._readings(store, told))
            return sum(not isinstance(reading.outcome, ParseFailure) for reading in readings)

    def _readings(self, store: Store, told: Recorded) -> Iterator[tuple[Row, tuple[Reading, str | None]]]:
        """Each row of the pool, with what its completion says, and the rationale, if there is one."""
        problem, pool = problem_for(self.problem), Examples.open(store, self.pool)
        for row, completion in zip(pool.rows(), told.beside(pool.path), strict=True):
            if completion is None:
                missing = ParseFailure("missing", "no completion has this custom_id", "")
                yield row, (Reading(told.failures.get(row["example_id"]) or missing), None)
            else:
                yield row, self._reading(problem, row["text"], completion)

    def _reading(self, problem: ProblemKind, text: str, completion: RecordedCompletion) -> tuple[Reading, str | None]:
        if self.rationales:
            return parse_reasoned(problem, text, completion.text, completion.finish_reason)
        return parse_completion(problem, text, completion.text, completion.finish_reason), None
