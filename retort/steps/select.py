"""`select`: whether a stage's labels are better than those before, like with like.

The k students of two stages see the same rows, start from the same weights and differ in their labels alone, so
their scores on the judging rows (which none of them trains on) say which labels are better. The verdict also tells
how many whole labels only one side got right, student i against student i, with McNemar's p (see `Duel`): for the
report, it decides nothing.
"""

import json

from retort.config import MckdConfig, SelectionConfig
from retort.io.parquet import read_rows
from retort.metrics.comparison import compare_systems
from retort.records.base import ArtifactRef, Label, Step
from retort.steps.context import StepContext
from retort.steps.evaluate import PREDICTIONS
from retort.store import StepOutput

VERSION = 2
VERDICT = "verdict.json"


def select(
    config: MckdConfig, name: str, reigning: tuple[ArtifactRef, ...], challenger: tuple[ArtifactRef, ...]
) -> Step:
    """Scores of both stages' students on the judging rows; `metrics["accepted"]` is 1 or 0."""
    return Step(
        name=name,
        verb="select",
        version=VERSION,
        kind="selections",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "metric": config.metrics[0],
            "selection": config.selection.model_dump(mode="json"),
            "resamples": config.evaluation.resamples,
            "seed": config.method.seed,
        },
        inputs={"reigning": reigning, "challenger": challenger},
    )


def make_selection(work: StepContext) -> StepOutput:
    params = work.stage.params
    selection, metric = SelectionConfig.model_validate(params["selection"]), params["metric"]
    golds, old = _labels(work, "reigning")
    _, new = _labels(work, "challenger")
    comparison, mcnemar = compare_systems(work.problem, metric, golds, old, new, params["resamples"], params["seed"])
    accepted = comparison.gain > 0 and comparison.win_share >= selection.confidence
    verdict = {
        **comparison._asdict(),
        "metric": metric,
        "accepted": bool(accepted),
        "n": len(golds),
        "mcnemar": mcnemar._asdict(),
    }
    (work.folder / VERDICT).write_text(json.dumps(verdict))
    return StepOutput(
        rows=len(golds),
        metrics={"accepted": float(accepted), "gain": comparison.gain, "win_share": comparison.win_share},
    )


def _labels(work: StepContext, role: str) -> tuple[list[Label], list[list[Label | None]]]:
    """The gold labels of the judging rows, and what each student of a side said."""
    tables = [list(read_rows(work.fetch_ref(ref) / PREDICTIONS)) for ref in work.stage.inputs[role]]
    return [row["gold"] for row in tables[0]], [[row["predicted"] for row in rows] for rows in tables]
