"""Gathers the `SoftLabelSummary` of a run from its artifacts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.artifacts.examples import set_aside
from retort.artifacts.grids import Grid
from retort.artifacts.scores import ArmScores, SeedScores
from retort.artifacts.times import Times
from retort.artifacts.verdicts import GateVerdict
from retort.config import Metric
from retort.metrics.bootstrap import compare, mcnemar
from retort.metrics.seeds import over_seeds, paired
from retort.records.base import ArtifactRef
from retort.records.soft_label import SoftLabelResult
from retort.report.soft_label.summary import Gain, McNemarOfSeed, SoftLabelSummary, Tried
from retort.store import Store

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
"""Pairs of arms that are compared if a run has both."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    result: SoftLabelResult
    store: Store
    resamples: int
    seed: int


def gather(run: Run, config: dict[str, Any], classes: tuple[str, ...], metrics: tuple[Metric, ...]) -> SoftLabelSummary:
    """`config` is the config as reported. Raises DamagedArtifact if an artifact of the run is gone."""
    result, store = run.result, run.store
    scores = {
        arm: {role: SeedScores.open(store, ref).scores() for role, ref in by_rows.items()}
        for arm, by_rows in result.scores.items()
    }
    student = store.manifest_of(result.final_student)
    roles = {"train": result.train, "dev": result.dev, **result.tests}
    if result.pool:
        roles["unlabeled"] = result.pool
    return SoftLabelSummary(
        name=config["name"],
        classes=classes,
        metrics=metrics,
        seeds=config["grid"]["seeds"],
        scores=scores,
        gains=tuple(_gains(run, scores)),
        tried=tuple(_tried(run)),
        costs=Times.open(store, result.times).costs(),
        student=student.details,
        model_uri=store.ref(student).uri,
        model_key=student.key,
        missing=store.manifest_of(result.train_probabilities).counts["missing"],
        rows={role: ref.rows for role, ref in roles.items()},
        data_keys={role: ref.key for role, ref in roles.items()},
        compute_seconds=sum(store.manifest_of(ref).seconds for ref in result.refs()),
        made_at=student.created_at,
        made_with=dict(student.versions),
        config=config,
        gate=GateVerdict.open(store, result.verdict).verdict() if result.verdict else None,
        champion=result.champion.version if result.champion else None,
        set_aside=set_aside(store, result.pool) if result.pool else None,
    )


def _gains(run: Run, scores: dict[str, dict[str, ArmScores]]) -> Iterator[Gain]:
    for arm, against in COMPARED:
        if arm not in scores or against not in scores:
            continue
        for rows in run.result.tests:
            refs = run.result.scores[against][rows], run.result.scores[arm][rows]
            yield _gain(run, arm, against, rows, refs, scores)


def _gain(
    run: Run,
    arm: str,
    against: str,
    rows: str,
    refs: tuple[ArtifactRef, ArtifactRef],
    scores: dict[str, dict[str, ArmScores]],
) -> Gain:
    metric = "accuracy"
    old, new = (SeedScores.open(run.store, ref).right() for ref in refs)
    values = [scores[one][rows].metrics[metric].values for one in (against, arm)]
    # A system with a single value is compared with every seed of the other; otherwise only common seeds are compared.
    size = min((len(one) for one in values if len(one) > 1), default=1)
    difference = paired(*(one if len(one) == 1 else one[:size] for one in values))
    overall = compare(
        [_counts(one) for one in old],
        [_counts(one) for one in new],
        lambda sums: sums[..., 0] / sums[..., 1],
        run.resamples,
        run.seed,
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
    """`(rows, 2)`: (right, 1), whose sums give the accuracy."""
    return np.stack([right.astype(np.float64), np.ones(len(right))], axis=1)


def _tried(run: Run) -> Iterator[Tried]:
    for arm, ref in run.result.grids.items():
        grid = Grid.open(run.store, ref)
        for at, one in enumerate(grid.tried()):
            dev = over_seeds(one.dev_accuracies)
            yield Tried(arm=arm, setting=one.setting, dev=dev, dev_loss=one.dev_loss, kept=at == grid.best)
