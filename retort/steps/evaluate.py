"""`evaluate`: predictions on gold-labelled rows and their scores.

Together with `select` and the report, the only reader of gold labels.
"""

import json

import pyarrow as pa

from retort.config import MckdConfig
from retort.io.parquet import read_rows, write_rows
from retort.metrics.scores import all_statistics, score_of
from retort.records.base import ArtifactRef, Example, Label, ParseFailure, Score, Step
from retort.steps.context import StepContext
from retort.steps.cross_label import INVALID_SHARE, outcomes
from retort.steps.ingest import OWN_ROWS, ROWS, read_gold
from retort.store import StepOutput

VERSION = 1
PREDICTIONS, SCORES = "predictions.parquet", "scores.json"
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("example_id", "text", "gold", "predicted")] + [("confidence", pa.float32())]
)


def evaluate_student(
    config: MckdConfig, name: str, student: ArtifactRef, rows: ArtifactRef, *, siblings: int = 1
) -> Step:
    """Scores of a student on gold-labelled examples."""
    params = {**_params(config), "student": config.student.kind, "max_length": config.student.training.max_length}
    return _stage(name, params, {"student": (student,), "gold": (rows,)}, siblings)


def evaluate_labels(config: MckdConfig, name: str, labels: ArtifactRef, pool: ArtifactRef) -> Step:
    """Scores of pseudolabels against the pool's own gold, where it has some: for the report, never for a choice."""
    return _stage(name, _params(config), {"labels": (labels,), "gold": (pool,)}, 1)


def evaluate_own_labels(config: MckdConfig, name: str, labels: ArtifactRef, labeled: ArtifactRef) -> Step:
    """Scores of a teacher's labels of the labelled set, each row labelled with the others as demonstrations."""
    return _stage(name, {**_params(config), "rows": "labeled"}, {"labels": (labels,), "gold": (labeled,)}, 1)


def _params(config: MckdConfig) -> dict[str, object]:
    return {
        "problem": config.problem.model_dump(mode="json"),
        "metrics": list(config.metrics),
        "resamples": config.evaluation.resamples,
        "seed": config.method.seed,
    }


def _stage(name: str, params: dict[str, object], inputs: dict[str, tuple[ArtifactRef, ...]], siblings: int) -> Step:
    return Step(
        name=name, verb="evaluate", version=VERSION, kind="scores", params=params, inputs=inputs, siblings=siblings
    )


def make_scores(work: StepContext) -> StepOutput:
    gold = read_gold(work, "gold")
    predicted, invalid = _given_labels(work) if "labels" in work.stage.inputs else _predicted_labels(work)
    labels = [predicted.get(example.example_id, (None, None)) for example in gold]
    rows = (
        {"example_id": e.example_id, "text": e.text, "gold": e.label, "predicted": label, "confidence": confidence}
        for e, (label, confidence) in zip(gold, labels, strict=True)
    )
    write_rows(work.folder / PREDICTIONS, _SCHEMA, rows)
    scores = _scores(work, gold, [label for label, _ in labels])
    (work.folder / SCORES).write_text(json.dumps([s.model_dump() for s in scores]))
    return StepOutput(rows=len(gold), metrics={**{s.metric: s.value for s in scores}, **invalid})


def _scores(work: StepContext, gold: list[Example], labels: list[Label | None]) -> list[Score]:
    params = work.stage.params
    golds = [example.label for example in gold if example.label is not None]
    if not golds:
        return []
    statistics = all_statistics(work.problem, params["metrics"], golds, labels)
    return [
        score_of(work.problem, metric, rows, resamples=params["resamples"], seed=params["seed"])
        for metric, rows in statistics.items()
    ]


def read_scores(work: StepContext, ref: ArtifactRef) -> list[Score]:
    return [Score.model_validate(item) for item in json.loads((work.fetch_ref(ref) / SCORES).read_text())]


Labels = dict[str, tuple[Label | None, float | None]]


def _given_labels(work: StepContext) -> tuple[Labels, dict[str, float]]:
    file = OWN_ROWS if work.stage.params.get("rows") == "labeled" else ROWS
    rows = read_rows(work.fetch("labels") / file, ["example_id", "label", "confidence"])
    return {row["example_id"]: (row["label"], row["confidence"]) for row in rows}, {}


def _predicted_labels(work: StepContext) -> tuple[Labels, dict[str, float]]:
    """And the share of outputs that were no label before they were put right."""
    labels: Labels = {}
    invalid = total = 0
    for row, outcome in outcomes(work, "gold"):
        total += 1
        if isinstance(outcome, ParseFailure):
            invalid += 1
        else:
            invalid += outcome.is_repaired
            labels[row["example_id"]] = (outcome.label, outcome.confidence)
    return labels, {INVALID_SHARE: invalid / total} if total else {}
