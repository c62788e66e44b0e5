"""`pseudolabel` by a recorded teacher: parses completions that were recorded earlier."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import ROWS, Pseudolabels, write_failures
from retort.config import Problem
from retort.data.completions import BadLine, read_completions
from retort.io.parquet import PSEUDOLABELS, Row, write_rows
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, ParseFailure, RecordedCompletion
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput

Completions = dict[str, RecordedCompletion]
Failures = dict[str, ParseFailure]


class PseudolabelRecorded(Step):
    """Label the pool with recorded completions. Those that cannot be parsed are set aside with their text and the
    reason."""

    kind = "pseudolabel"
    version = 1
    artifact = Pseudolabels

    problem: Problem
    teacher: Literal["recorded"] = "recorded"
    completions: str
    """Fingerprint of the file."""
    pool: ArtifactRef
    path: Runtime[str]
    endpoint_url: Runtime[str | None]
    min_success_ratio: Runtime[float]

    def run(self, context: StepContext) -> StepOutput:
        problem, (completions, failures) = problem_for(self.problem), self._completions()
        counts: Counter[str] = Counter()

        def rows() -> Iterator[Row]:
            for row in Examples.open(context.store, self.pool).rows():
                outcome = _outcome(problem, row, completions, failures)
                if isinstance(outcome, ParseFailure):
                    counts[outcome.reason] += 1
                    failures[row["example_id"]] = outcome
                else:
                    yield {**row, "label": outcome, "confidence": 1.0, "labeler": "teacher"}
                counts["asked"] += 1

        labeled = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        write_failures(context.folder, failures)
        check_success(self.min_success_ratio, labeled, counts)
        failed = counts["asked"] - labeled
        metrics = {"success_share": labeled / counts["asked"]}
        return StepOutput(rows=labeled, counts={**counts, "failures": failed}, metrics=metrics)

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


def _outcome(problem: ProblemKind, row: Row, completions: Completions, failures: Failures) -> str | ParseFailure:
    example_id = row["example_id"]
    completion = completions.get(example_id)
    if completion is None:
        return failures.get(example_id) or ParseFailure("missing", "no completion has this custom_id", "")
    label = problem.parse(row["text"], completion.text)
    if isinstance(label, ParseFailure) and completion.finish_reason == "length":
        return ParseFailure("cut-short", f"the completion reached its token limit: {label.detail}", completion.text)
    return label
