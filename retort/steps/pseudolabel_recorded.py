"""`pseudolabel` by a recorded teacher: completions that were recorded earlier, read like those that are asked for."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import RATIONALE_ROWS, ROWS, Pseudolabels, write_failures
from retort.config import Problem
from retort.config.teachers import Rationales
from retort.data.completions import BadLine, read_completions
from retort.io.parquet import PSEUDOLABELS, RATIONALES, Row, RowWriter, write_rows
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, ParseFailure, RecordedCompletion
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput, Store
from retort.teachers.rationales import parse_reasoned
from retort.teachers.salvage import Reading, parse_completion

Completions = dict[str, RecordedCompletion]
Failures = dict[str, ParseFailure]


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
        problem, (completions, failures) = problem_for(self.problem), self._completions()
        counts: Counter[str] = Counter()
        labels: Counter[str] = Counter()

        def rows() -> Iterator[Row]:
            for row in Examples.open(context.store, self.pool).rows():
                reading, rationale = self._reading(problem, row, completions, failures)
                if isinstance(reading.outcome, ParseFailure):
                    counts[reading.outcome.reason] += 1
                    failures[row["example_id"]] = reading.outcome
                else:
                    labels.update(reading.counted)
                    if rationale is not None:
                        rationales.write({"example_id": row["example_id"], "rationale": rationale})
                    yield {**row, "label": reading.outcome, "confidence": reading.covered, "labeler": "teacher"}
                counts["asked"] += 1

        with RowWriter(context.folder / RATIONALE_ROWS, RATIONALES) as rationales:
            labeled = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        write_failures(context.folder, failures)
        check_success(self.min_success_ratio, labeled, counts)
        failed = counts["asked"] - labeled
        metrics = {"success_share": labeled / counts["asked"]}
        return StepOutput(rows=labeled, counts={**counts, **labels, "failures": failed}, metrics=metrics)

    def num_labels(self, store: Store) -> int:
        """How many rows of the pool get a label. For `doctor`: nothing is written."""
        problem, (completions, failures) = problem_for(self.problem), self._completions()
        pool = Examples.open(store, self.pool).rows()
        readings = (self._reading(problem, row, completions, failures)[0] for row in pool)
        return sum(not isinstance(reading.outcome, ParseFailure) for reading in readings)

    def _completions(self) -> tuple[Completions, Failures]:
        """Completions by id, and the lines that are not completions. Of two with the same id, the first counts and the
        other is set aside."""
        completions: Completions = {}
        failures: Failures = {}
        for one in read_completions(self.path, self.endpoint_url):
            if isinstance(one, BadLine):
                failures[one.example_id or one.place] = ParseFailure(one.reason, one.detail, one.raw)
            elif one.example_id in completions:
                detail = "the same custom_id occurs twice; the first one counts"
                failures[f"{one.example_id} (again)"] = ParseFailure("duplicated", detail, one.text)
            else:
                completions[one.example_id] = one
        return completions, failures

    def _reading(
        self, problem: ProblemKind, row: Row, completions: Completions, failures: Failures
    ) -> tuple[Reading, str | None]:
        """What a row's completion says, and the rationale, if there is one."""
        example_id = row["example_id"]
        completion = completions.get(example_id)
        if completion is None:
            missing = ParseFailure("missing", "no completion has this custom_id", "")
            return Reading(failures.get(example_id) or missing), None
        if self.rationales:
            return parse_reasoned(problem, row["text"], completion.text, completion.finish_reason)
        return parse_completion(problem, row["text"], completion.text, completion.finish_reason), None
