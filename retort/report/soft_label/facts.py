"""Gathers the `SoftLabelSummary` of a run from its artifacts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.artifacts.examples import Examples, set_aside
from retort.artifacts.grids import Grid
from retort.artifacts.probabilities import Probabilities
from retort.artifacts.scores import ArmScores, SeedScores
from retort.artifacts.times import Times
from retort.artifacts.verdicts import GateVerdict
from retort.config import ClassificationConfig, Metric
from retort.io.parquet import Row
from retort.metrics.bootstrap import OneHot, compare, mcnemar
from retort.metrics.scores import statistics_of
from retort.metrics.seeds import over_seeds, paired
from retort.problems.classification import Classification
from retort.records.base import ArtifactRef
from retort.records.soft_label import SoftLabelResult
from retort.report.course import Made, arm_costs, curves, spans
from retort.report.mistakes import error_tables
from retort.report.quality import ErrorTable, Reliability, Slice, reliability
from retort.report.slices import worst_slices
from retort.report.soft_label.summary import Gain, McNemarOfSeed, SoftLabelSummary, Tried
from retort.store import Manifest, Store
from retort.store.ancestry import ancestors

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


STUDENT = ("arm", "setting", "seed", "dev_accuracy", "parameters", "bytes")
"""What is told of the exported student, of its manifest's details."""


def gather(run: Run, config: dict[str, Any], problem: Classification, metrics: tuple[Metric, ...]) -> SoftLabelSummary:
    """`config` is the config as reported. Raises DamagedArtifact if an artifact of the run is gone."""
    result, store = run.result, run.store
    scores = {
        arm: {role: SeedScores.open(store, ref).scores() for role, ref in by_rows.items()}
        for arm, by_rows in result.scores.items()
    }
    student = store.manifest_of(result.final_student)
    parts = list(_made(run))
    tests = tuple(_tested(run, problem, metrics[0], name, str(student.details["arm"])) for name in result.tests)
    roles = {"train": result.train, "dev": result.dev, **result.tests}
    if result.pool:
        roles["unlabeled"] = result.pool
    return SoftLabelSummary(
        name=config["name"],
        classes=problem.classes,
        metrics=metrics,
        seeds=config["grid"]["seeds"],
        scores=scores,
        gains=tuple(_gains(run, scores)),
        tried=tuple(_tried(run)),
        costs=Times.open(store, result.times).costs(),
        student={name: student.details[name] for name in STUDENT if name in student.details},
        model_uri=store.ref(student).uri,
        model_key=student.key,
        missing=store.manifest_of(result.train_probabilities).counts["missing"],
        rows={role: ref.rows for role, ref in roles.items()},
        data_keys={role: ref.key for role, ref in roles.items()},
        compute_seconds=sum(part.manifest.seconds for part in parts),
        made_at=student.created_at,
        made_with=dict(student.versions),
        config=config,
        gate=GateVerdict.open(store, result.verdict).verdict() if result.verdict else None,
        champion=result.champion.version if result.champion else None,
        set_aside=set_aside(store, result.pool) if result.pool else None,
        spans=spans(parts),
        curves=curves(store, parts),
        arm_costs=arm_costs(parts, _arms(result)),
        reliability={one.name: one.reliability for one in tests},
        slices={one.name: one.slices for one in tests},
        errors={one.name: one.errors for one in tests},
    )


def _made(run: Run) -> Iterator[Made]:
    """Everything that the run rests on, each artifact once. What the gate and the champion's scores rest on belongs to
    this run already, or to that of the champion."""
    result, store = run.result, run.store
    gate = {ref.key for ref in result.challenge_refs if ref is not None}
    seen = set(gate)
    for ref in result.refs():
        if ref.key in gate:
            yield _made_in("gate" if ref == result.verdict else "champion", store.manifest_of(ref))
            continue
        for manifest in ancestors(store, ref.kind, ref.key, seen):
            group = manifest.name.partition("/")[0]
            yield _made_in({"ingest": "data", "final": "final student"}.get(group, group), manifest)


def _made_in(group: str, manifest: Manifest) -> Made:
    return Made(group, manifest, manifest.name if group == "data" else manifest.fingerprint["verb"])


def _arms(result: SoftLabelResult) -> dict[str, list[ArtifactRef]]:
    arms = {arm: list(by_rows.values()) for arm, by_rows in result.scores.items()}
    return {**arms, "final student": [result.final_student]}


class _Tested(NamedTuple):
    """How the exported student's arm does on a test set."""

    name: str
    reliability: tuple[Reliability, ...]
    slices: tuple[Slice, ...]
    errors: tuple[ErrorTable, ...]


def _tested(run: Run, problem: Classification, metric: Metric, name: str, arm: str) -> _Tested:
    store, test = run.store, run.result.tests[name]
    scores = SeedScores.open(store, run.result.scores[arm][name])
    gold = Examples.open(store, test).gold()
    of_seeds = scores.answers()
    golds = [example.label or "" for example in gold]
    found = [statistics_of(problem, metric, golds, labels) for labels in of_seeds]
    statistics = np.mean([one.dense() if isinstance(one, OneHot) else one for one in found], axis=0)
    seed = int(store.manifest_of(run.result.final_student).details["seed"]) % len(of_seeds)
    rows: list[Row] = [
        {"example_id": example.example_id, "text": example.text, "gold": example.label, "predicted": label}
        for example, label in zip(gold, of_seeds[seed], strict=True)
    ]
    slices = worst_slices(
        problem,
        metric,
        rows,
        Examples.open(store, test).groups(),
        by_class=True,
        resamples=run.resamples,
        seed=run.seed,
        statistics=statistics,
    )
    config = ClassificationConfig(kind="classification", labels=list(problem.classes))
    systems = (_reliability(run, problem, one, name) for one in dict.fromkeys((arm, "teacher")))
    return _Tested(name, tuple(one for one in systems if one), slices, error_tables(config, problem, rows))


def _reliability(run: Run, problem: Classification, arm: str, rows: str) -> Reliability | None:
    """Of all seeds together; None without probabilities."""
    ref = run.result.scores[arm].get(rows)
    if ref is None:
        return None
    store, examples = run.store, Examples.open(run.store, run.result.tests[rows])
    indices = np.array([problem.classes.index(row["label"]) for row in examples.gold_rows(["label"])])
    confidences: list[float | None] = []
    right: list[bool] = []
    for key in store.manifest_of(ref).fingerprint["inputs"]["predictions"]:
        found = store.find("predictions", key)
        if found is None:
            return None
        probabilities = Probabilities.open(store, store.ref(found))
        for seed in probabilities.seeds():
            of_seed = np.concatenate(list(probabilities.beside(examples.gold_path, problem.classes, seed)))
            known = ~np.isnan(of_seed).any(axis=-1)
            confidences += of_seed[known].max(axis=-1).tolist()
            right += (of_seed[known].argmax(axis=-1) == indices[known]).tolist()
    return reliability(arm, confidences, right)


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
