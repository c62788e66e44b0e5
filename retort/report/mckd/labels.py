"""How each stage changed the pool's labels. Pools are large, so everything is done in one pass and only the top rows
are kept."""

import heapq
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import Pseudolabels
from retort.io.parquet import Row, aligned, parquet_file
from retort.metrics.format import shortened
from retort.problems import Problem
from retort.records.base import ArtifactRef
from retort.report.mckd.summary import ChangedExample, Failure, Flow, LabelChange, LabelFailures, State
from retort.store import Store

EXAMPLES_SHOWN = 10
FAILURES_SHOWN = 20
BATCH_ROWS = 512
"""Rows held in memory with their probabilities; 512 rows of 20 words and 100 classes take 2 MB."""

Verdict = Literal["fixed", "broken", "still wrong"]


class _Changed(NamedTuple):
    rank: tuple[float, ...]
    """Smaller for larger changes."""
    example: ChangedExample


def label_change(store: Store, problem: Problem, pool: ArtifactRef, old: ArtifactRef, new: ArtifactRef) -> LabelChange:
    """Compare the labels of two stages row by row, and with the pool's gold labels if it has any."""
    counts: Counter[str] = Counter()
    flows: Counter[tuple[State, State]] = Counter()

    def changed() -> Iterator[_Changed]:
        for gold, before, after in _side_by_side(store, pool, old, new):
            if gold is not None:
                state = _state(problem, gold, after)
                same = before is not None and after is not None and before["label"] == after["label"]
                flows[state if same else _state(problem, gold, before), state] += 1
            if after is None:
                continue
            counts["new"] += before is None
            if before is None or before["label"] == after["label"]:
                continue
            change = _changed(problem, gold, before, after)
            counts["changed"] += 1
            counts[change.example.verdict or "unknown"] += 1
            yield change

    top = [item.example for item in heapq.nsmallest(EXAMPLES_SHOWN, changed(), key=lambda item: item.rank)]
    kept = store.manifest_of(new).counts.get("kept", 0)
    return LabelChange(
        changed=counts["changed"],
        kept=kept,
        new=counts["new"],
        known=counts["changed"] - counts["unknown"],
        fixed=counts["fixed"],
        broken=counts["broken"],
        still_wrong=counts["still wrong"],
        order="old-label-probability" if top and top[0].old_probability is not None else "parts-changed",
        examples=tuple(_rendered(problem, example) for example in top),
        flows=tuple(Flow(before=before, after=after, rows=rows) for (before, after), rows in sorted(flows.items())),
    )


def _state(problem: Problem, gold: str, row: Row | None) -> State:
    if row is None:
        return "none"
    return "right" if problem.matches(gold, row["label"]) else "wrong"


def label_failures(store: Store, teacher_labels: ArtifactRef) -> LabelFailures:
    """Why completions gave no label. The examples alternate between the reasons."""
    reasons: Counter[str] = Counter()
    kept: dict[str, list[Failure]] = {}
    for row in Pseudolabels.open(store, teacher_labels).failures():
        reasons[row["reason"]] += 1
        samples = kept.setdefault(row["reason"], [])
        if len(samples) < FAILURES_SHOWN:
            samples.append(Failure(**{**row, "raw": shortened(row["raw"], 1000)}))
    in_turn = sorted((place, reason) for reason, samples in kept.items() for place in range(len(samples)))
    examples = tuple(kept[reason][place] for place, reason in in_turn[:FAILURES_SHOWN])
    return LabelFailures(reasons=dict(reasons.most_common()), examples=examples)


def _side_by_side(
    store: Store, pool: ArtifactRef, old: ArtifactRef, new: ArtifactRef
) -> Iterator[tuple[str | None, Row | None, Row | None]]:
    """Yield (gold label, old row, new row) for each row of the pool, None for what it lacks. All files are in the order
    of the pool."""
    examples = Examples.open(store, pool)
    before = Pseudolabels.open(store, old).rows(["example_id", "text", "label"])
    after = _with_probabilities(Pseudolabels.open(store, new).path)
    for _, (gold, old_row, new_row) in aligned(examples.rows(["example_id"]), examples.gold_rows(), before, after):
        yield gold["label"] if gold else None, old_row, new_row


def _with_probabilities(path: Path) -> Iterator[Row]:
    """Rows whose `probabilities` are still Arrow values, since only those of changed rows are needed."""
    with parquet_file(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            probabilities = batch.column("probabilities")
            for index, row in enumerate(batch.drop_columns(["probabilities"]).to_pylist()):
                yield {**row, "probabilities": probabilities[index]}


def _changed(problem: Problem, gold: str | None, old: Row, new: Row) -> _Changed:
    parts = set(problem.parts(old["label"])) ^ set(problem.parts(new["label"]))
    probability = _probability(problem, old["text"], old["label"], new["probabilities"])
    example = ChangedExample(
        example_id=old["example_id"],
        text=old["text"],
        old=old["label"],
        new=new["label"],
        gold=gold,
        verdict=None if gold is None else _verdict(problem, gold, old["label"], new["label"]),
        old_probability=probability,
        num_parts_changed=len(parts),
        confidence=new["confidence"],
        labeler=new["labeler"],
    )
    rank = (-len(parts), -new["confidence"]) if probability is None else (probability,)
    return _Changed(rank, example)


def _verdict(problem: Problem, gold: str, old: str, new: str) -> Verdict:
    if problem.matches(gold, new):
        return "fixed"
    return "broken" if problem.matches(gold, old) else "still wrong"


def _probability(problem: Problem, text: str, label: str, probabilities: Any) -> float | None:
    """Geometric mean over the label's units, in [0, 1]; None if the row has no probabilities (an Arrow null)."""
    if not probabilities.is_valid:
        return None
    units = np.asarray(probabilities.values, dtype=np.float64).reshape(-1, len(problem.classes))
    units = units * problem.allowed(len(units))  # keep only the classes that each kind of unit may have
    units /= np.maximum(units.sum(axis=1, keepdims=True), 1e-12)
    chosen = units[np.arange(len(units)), problem.targets(text, label)]
    return float(np.exp(np.log(np.maximum(chosen, 1e-12)).mean()))


def _rendered(problem: Problem, example: ChangedExample) -> ChangedExample:
    texts = {
        field: shortened(problem.render(example.text, label))
        for field in ("old", "new", "gold")
        if (label := getattr(example, field)) is not None
    }
    return example.model_copy(update=texts)
