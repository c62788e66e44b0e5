"""`pseudolabel` by a teacher that is asked row by row: vLLM, an endpoint, transformers.

The artifact holds the pool's labels, what was set aside, and the teacher's labels of the labelled set, where each row
was asked about with the others as demonstrations: how good the teacher is, on rows whose label it was not shown.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from retort.config import MckdConfig, Teacher
from retort.config.teachers import LlmTeacherConfig
from retort.io.parquet import PSEUDOLABELS, Row, write_rows
from retort.metrics.calibration import expected_calibration_error, fit_temperature, label_probabilities
from retort.records.base import Data, Example, ParseFailure, Step
from retort.steps.context import StepContext
from retort.steps.ingest import OWN_ROWS, ROWS, read_gold
from retort.steps.pseudolabel_recorded import check_success, write_failures
from retort.store import StepOutput
from retort.teachers.clients import open_client
from retort.teachers.forecast import keep_pace
from retort.teachers.identity import teacher_identity
from retort.teachers.labeler import Labeler
from retort.teachers.ledger import Ledger
from retort.teachers.parsing import CompletionParser, Labeled, Outcome
from retort.teachers.request_builder import request_builder, sampling_seed
from retort.teachers.top_logprobs import TEACHER_TOKENS, TokensWriter
from retort.teachers.usage import Usage

VERSION = 1
COMPACT_FROM = 20
"""Shards of the ledger from which on they are merged when a stage is done."""

_TEACHER: TypeAdapter[Any] = TypeAdapter(Teacher)
_SHAPING = ("prompt", "sampling", "constrained", "labels", "verbalizers", "ask_again")
"""Fields of a teacher's config that change its labels; who it is stands in its identity."""


def pseudolabel_asked(config: MckdConfig, name: str, teacher: LlmTeacherConfig, data: Data) -> Step:
    """Labels of the pool, and of the labelled set."""
    shaping = teacher.model_dump(mode="json", include=set(_SHAPING))
    return Step(
        name=name,
        verb="pseudolabel",
        version=VERSION,
        kind="pseudolabels",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "teacher": "asked",
            "identity": teacher_identity(teacher, config.store.server),
            "seed": sampling_seed(teacher),
            "metric": config.metrics[0],
            **shaping,
        },
        inputs={"pool": (data.unlabeled,), "labeled": (data.labeled,)},
        knobs={
            "config": teacher.model_dump(mode="json"),
            "endpoint_url": config.store.endpoint_url,
            "min_success_ratio": teacher.min_success_ratio,
        },
    )


def asked_config(stage: Step) -> LlmTeacherConfig:
    """The teacher of a stage."""
    teacher: LlmTeacherConfig = _TEACHER.validate_python(stage.knobs["config"])
    return teacher


def make_asked_labels(work: StepContext) -> StepOutput:
    teacher = asked_config(work.stage)
    labelled = read_gold(work, "labeled")
    ledger = Ledger(work.store, work.stage.params["identity"])
    reader = CompletionParser(work.problem, work.stage.params["metric"], teacher)
    spending = Usage(teacher.prices, teacher.budget)
    labelling = Labeler(
        questions=request_builder(work.problem, teacher, labelled),
        reader=reader,
        ledger=ledger,
        open_client=lambda: open_client(teacher, work.attempt, work.execution, work.stage.knobs["endpoint_url"]),
        spending=spending,
        progress=work.progress,
    )
    with labelling:
        own = list(labelling.label(work.fetch("labeled") / ROWS))
        quality = _quality(work, teacher, labelled, own)
        write_rows(work.folder / OWN_ROWS, PSEUDOLABELS, (_as_row(row, outcome) for row, outcome in own))
        reader.calibration_temperature = quality.get("calibration_temperature", 1.0)
        reader.outside_masses.clear()
        labelled_rows, counts = _label_pool(work, labelling.label(work.fetch("pool") / ROWS))
        facts = labelling.facts
    keep_pace(work.store, ledger, spending)
    compacted = ledger.compact() if len(ledger.files()) > COMPACT_FROM else 0
    check_success(work, labelled_rows, counts)
    if reader.outside_masses:
        quality["outside_mass"] = float(np.mean(reader.outside_masses))
    return StepOutput(
        rows=labelled_rows,
        counts={**counts, **reader.counts, "failures": counts["asked"] - labelled_rows, "compacted_shards": compacted},
        metrics={"success_share": labelled_rows / counts["asked"], **quality},
        details={"spent": spending.as_details(), "engine": facts, "damaged": ledger.damaged},
    )


def _label_pool(work: StepContext, outcomes: Iterator[tuple[Row, Outcome]]) -> tuple[int, Counter[str]]:
    """Writes labels and failures; returns how many rows got a label, and counts by reason."""
    counts: Counter[str] = Counter()
    failures: dict[str, ParseFailure] = {}

    def rows() -> Iterator[Row]:
        for row, outcome in outcomes:
            counts["asked"] += 1
            if isinstance(outcome, ParseFailure):
                counts[outcome.reason] += 1
                failures[row["example_id"]] = outcome
            else:
                if outcome.top:
                    tokens.add(row["example_id"], outcome.top)
                yield _as_row(row, outcome)

    with TokensWriter(work.folder / TEACHER_TOKENS) as tokens:
        count = write_rows(work.folder / ROWS, PSEUDOLABELS, rows())
    write_failures(work, failures)
    return count, counts


def _as_row(row: Row, outcome: Outcome) -> Row:
    if isinstance(outcome, ParseFailure):
        return {**row, "label": None, "confidence": 0.0, "labeler": "teacher"}
    soft = outcome.probabilities and np.asarray(outcome.probabilities, dtype=np.float16)
    labelled = {"label": outcome.label, "confidence": outcome.confidence, "probabilities": soft}
    return {**row, **labelled, "labeler": "teacher"}


def _quality(
    work: StepContext, teacher: LlmTeacherConfig, labelled: list[Example], own: list[tuple[Row, Outcome]]
) -> dict[str, float]:
    """How well the teacher's probabilities of the labelled set are calibrated, and the temperature that mends them.
    Nothing for hard labels. The error after calibration is of the very rows that the temperature was fitted on."""
    if teacher.labels != "soft":
        return {}
    gold = {example.example_id: example.label for example in labelled}
    known = [(o, gold[row["example_id"]]) for row, o in own if isinstance(o, Labeled) and o.probabilities]
    if not known:
        return {}
    scores = np.log(np.maximum([outcome.probabilities or () for outcome, _ in known], 1e-300))
    indices = np.array([work.problem.targets("", str(label))[0] for _, label in known])
    temperature = fit_temperature(scores, indices)
    return {
        "calibration_temperature": temperature,
        "calibration_error_before": expected_calibration_error(label_probabilities(scores), indices),
        "calibration_error_after": expected_calibration_error(label_probabilities(scores, temperature), indices),
    }
