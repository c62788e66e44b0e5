"""`pseudolabel` by a recorded teacher: completions that were made before."""

from collections import Counter
from collections.abc import Iterator

from retort.config import MckdConfig, RecordedConfig
from retort.data import fingerprint
from retort.data.completions import BadLine, read_completions
from retort.errors import StageFailed
from retort.io.parquet import FAILURES, PSEUDOLABELS, Row, read_rows, write_rows
from retort.records.base import ArtifactRef, ParseFailure, RecordedCompletion, Step
from retort.steps.context import StepContext
from retort.steps.ingest import ROWS
from retort.store import StepOutput

VERSION = 1
FAILED_ROWS = "failures.parquet"


def pseudolabel_recorded(config: MckdConfig, name: str, teacher: RecordedConfig, pool: ArtifactRef) -> Step:
    """Labels from completions that were made before."""
    return Step(
        name=name,
        verb="pseudolabel",
        version=VERSION,
        kind="pseudolabels",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "teacher": "recorded",
            "completions": fingerprint(teacher.completions, config.store.endpoint_url),
        },
        inputs={"pool": (pool,)},
        knobs={
            "completions": teacher.completions,
            "endpoint_url": config.store.endpoint_url,
            "min_success_ratio": teacher.min_success_ratio,
        },
    )


def make_recorded_labels(work: StepContext) -> StepOutput:
    """Parse each row's completion. What cannot be parsed is set aside with its raw text and the reason."""
    pool = work.fetch("pool") / ROWS
    answers, failures = _answers(work)
    counts: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for row in read_rows(pool):
            outcome = _outcome(work, row, answers, failures)
            if isinstance(outcome, ParseFailure):
                counts[outcome.reason] += 1
                failures[row["example_id"]] = outcome
            else:
                yield {**row, "label": outcome, "confidence": 1.0, "labeler": "teacher"}
            counts["asked"] += 1

    labelled = write_rows(work.folder / ROWS, PSEUDOLABELS, rows())
    write_failures(work, failures)
    check_success(work, labelled, counts)
    failed = counts["asked"] - labelled
    return StepOutput(
        rows=labelled, counts={**counts, "failures": failed}, metrics={"success_share": labelled / counts["asked"]}
    )


Answers = dict[str, RecordedCompletion]
Failures = dict[str, ParseFailure]


def _answers(work: StepContext) -> tuple[Answers, Failures]:
    """Completions by id, and the lines that are none. Of two for one id the first counts, the other is kept aside."""
    answers: Answers = {}
    failures: Failures = {}
    for answer in read_completions(work.stage.knobs["completions"], work.stage.knobs["endpoint_url"]):
        if isinstance(answer, BadLine):
            failures[answer.example_id or answer.place] = ParseFailure(answer.reason, answer.detail, answer.raw)
        elif answer.example_id in answers:
            detail = "the same custom_id occurs twice; the first one counts"
            failures[f"{answer.example_id} (again)"] = ParseFailure("duplicated", detail, answer.text)
        else:
            answers[answer.example_id] = answer
    return answers, failures


def _outcome(work: StepContext, row: Row, answers: Answers, failures: Failures) -> str | ParseFailure:
    example_id = row["example_id"]
    answer = answers.get(example_id)
    if answer is None:
        return failures.get(example_id) or ParseFailure("missing", "no completion has this custom_id", "")
    label = work.problem.parse(row["text"], answer.text)
    if isinstance(label, ParseFailure) and answer.finish_reason == "length":
        return ParseFailure("cut-short", f"the completion reached its token limit: {label.detail}", answer.text)
    return label


def write_failures(work: StepContext, failures: Failures) -> None:
    """What was set aside, with its raw text and the reason."""
    kept = (
        {"example_id": example_id, "reason": f.reason, "detail": f.detail, "raw": f.raw}
        for example_id, f in failures.items()
    )
    write_rows(work.folder / FAILED_ROWS, FAILURES, kept)


def check_success(work: StepContext, labelled: int, counts: Counter[str]) -> None:
    """Raises StageFailed where too few rows have a label. `counts`: rows by reason, and `asked`."""
    least, asked = work.stage.knobs["min_success_ratio"], counts["asked"]
    if labelled < least * asked:
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if reason != "asked")
        raise StageFailed(
            f"only {labelled} of {asked} rows got a label ({labelled / asked:.1%}), below "
            f"teacher.min_success_ratio = {least:g}; reasons: {reasons}"
        )
