"""From the artifacts of a run to its `ScoreSummary`."""

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retort.metrics.bootstrap import compare, mcnemar
from retort.metrics.seeds import over_seeds, paired
from retort.records.base import ArtifactRef, SoftLabelResult
from retort.report.mckd.artifacts import manifest_of
from retort.report.soft_label.summary import Gain, McNemarOfSeed, ScoreSummary, Tried
from retort.steps.context import StepContext
from retort.steps.score_predictions import ArmScores, read_arm_scores, read_right
from retort.steps.time_students import TIMES, Costs
from retort.steps.train_grid import GRID

COMPARED = (
    ("soft-grid", "hard"),
    ("soft-only", "hard"),
    ("label-smoothing", "hard"),
    ("only-where-right", "hard"),
    ("with-pool", "hard"),
    ("with-pool", "soft-grid"),
    ("soft-grid", "tinybert"),
    ("with-pool", "tinybert"),
)
"""Which arm is compared with which, where a run has both."""


def gather_scores(work: StepContext) -> ScoreSummary:
    scored = SoftLabelResult.model_validate(work.stage.knobs["scored"])
    params = work.stage.params
    scores = {
        arm: {role: read_arm_scores(work, ref) for role, ref in by_rows.items()}
        for arm, by_rows in scored.scores.items()
    }
    manifests = [manifest_of(work, ref) for ref in scored.refs()]
    student = manifest_of(work, scored.student)
    roles = {"train": scored.train, "dev": scored.dev, **scored.tests}
    if scored.pool:
        roles["unlabeled"] = scored.pool
    return ScoreSummary(
        name=params["name"],
        classes=tuple(params["problem"]["labels"]),
        metrics=tuple(params["metrics"]),
        seeds=params["seeds"],
        scores=scores,
        gains=tuple(_gains(work, scored, scores)),
        tried=tuple(_tried(work, scored)),
        costs=Costs.model_validate_json((work.fetch_ref(scored.times) / TIMES).read_text(encoding="utf-8")),
        student=student.details,
        model_uri=work.store.ref(student).uri,
        model_key=student.key,
        missing=manifest_of(work, scored.train_probabilities).counts["missing"],
        rows={role: ref.rows for role, ref in roles.items()},
        data_keys={role: ref.key for role, ref in roles.items()},
        compute_seconds=sum(manifest.seconds for manifest in manifests),
        made_at=student.created_at,
        made_with=student.versions,
        config=params["config"],
    )


def _gains(work: StepContext, scored: SoftLabelResult, scores: dict[str, dict[str, ArmScores]]) -> Iterator[Gain]:
    for arm, against in COMPARED:
        if arm not in scores or against not in scores:
            continue
        for rows in scored.tests:
            refs = scored.scores[against][rows], scored.scores[arm][rows]
            yield _gain(work, arm, against, rows, refs, scores)


def _gain(
    work: StepContext,
    arm: str,
    against: str,
    rows: str,
    refs: tuple[ArtifactRef, ArtifactRef],
    scores: dict[str, dict[str, ArmScores]],
) -> Gain:
    params, metric = work.stage.params, "accuracy"
    old, new = (read_right(work, ref) for ref in refs)
    values = [scores[one][rows].metrics[metric].values for one in (against, arm)]
    # A single system is compared with every seed of the other; of two numbers of seeds, those that both have.
    size = min((len(one) for one in values if len(one) > 1), default=1)
    difference = paired(*(one if len(one) == 1 else one[:size] for one in values))
    overall = compare(
        [_counts(one) for one in old],
        [_counts(one) for one in new],
        lambda sums: sums[..., 0] / sums[..., 1],
        params["resamples"],
        params["seed"],
    )
    return Gain(
        arm=arm,
        against=against,
        rows=rows,
        metric="accuracy",
        difference=difference,
        low=overall.low,
        high=overall.high,
        mcnemar=tuple(
            McNemarOfSeed(seed=seed, **mcnemar(old[seed % len(old)], new[seed % len(new)])._asdict())
            for seed in range(max(size, 1))
        ),
    )


def _counts(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`(rows, 2)`: (right, 1), the sums of accuracy."""
    return np.stack([right.astype(np.float64), np.ones(len(right))], axis=1)


def _tried(work: StepContext, scored: SoftLabelResult) -> Iterator[Tried]:
    for arm, ref in scored.grids.items():
        grid = json.loads((work.fetch_ref(ref) / GRID).read_text(encoding="utf-8"))
        for at, one in enumerate(grid["tried"]):
            dev = over_seeds(one["dev_accuracies"])
            kept = at == grid["best"]
            yield Tried(arm=arm, setting=one["setting"], dev=dev, dev_loss=one["dev_loss"], kept=kept)
