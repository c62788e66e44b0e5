"""`select`: whether a stage's labels are better than those before, like with like.

The k students of two stages see the same rows, start from the same weights and differ in their labels alone, so
their scores on the judging rows (which none of them trains on) say which labels are better.
"""

import json

from retort.config import Config, SelectionConfig
from retort.method.scoring import statistics_of
from retort.method.significance import compare
from retort.problems.base import Floats
from retort.records import ArtifactRef, Stage
from retort.rows import read_rows
from retort.stages.scores import PREDICTIONS
from retort.stages.work import Work
from retort.store import Product

VERSION = 1
VERDICT = "verdict.json"


def select(config: Config, name: str, reigning: tuple[ArtifactRef, ...], challenger: tuple[ArtifactRef, ...]) -> Stage:
    """Scores of both stages' students on the judging rows; `metrics["accepted"]` is 1 or 0."""
    return Stage(
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


def make_selection(work: Work) -> Product:
    params = work.stage.params
    selection, metric = SelectionConfig.model_validate(params["selection"]), params["metric"]

    def statistics(role: str) -> list[Floats]:
        systems = []
        for ref in work.stage.inputs[role]:
            rows = list(read_rows(work.fetch_ref(ref) / PREDICTIONS))
            golds, labels = [row["gold"] for row in rows], [row["predicted"] for row in rows]
            systems.append(statistics_of(work.problem, metric, golds, labels))
        return systems

    old, new = statistics("reigning"), statistics("challenger")
    comparison = compare(old, new, lambda sums: work.problem.value(metric, sums), params["resamples"], params["seed"])
    accepted = comparison.gain > 0 and comparison.win_share >= selection.confidence
    verdict = {**comparison._asdict(), "metric": metric, "accepted": bool(accepted), "n": len(old[0])}
    (work.folder / VERDICT).write_text(json.dumps(verdict))
    return Product(
        rows=len(old[0]),
        metrics={"accepted": float(accepted), "gain": comparison.gain, "win_share": comparison.win_share},
    )
