"""`hygiene`: looks for near-duplicates, leakage, suspicious labels and drift. It changes nothing; the report tells what
it found, and the gate may hold a promotion for it."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import pyarrow as pa

from retort.artifacts.examples import Examples
from retort.artifacts.hygiene import (
    DUPLICATES,
    FACTS,
    SUSPICIOUS,
    Change,
    Drift,
    DuplicateRow,
    Duplicates,
    Hygiene,
    PoolHygiene,
    Suspicious,
    SuspiciousLabel,
)
from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import Problem
from retort.data.changes import new_rows, some_rows
from retort.data.near_duplicates import MOST_INDEXED, IdText, Match, find, indexed_share, is_drawn
from retort.io.database import query
from retort.io.parquet import Row, aligned, write_rows
from retort.io.scratch import scratch
from retort.metrics.drift import Effect, of_categories, of_numbers, of_texts
from retort.metrics.format import percent, shortened
from retort.problems import problem_for
from retort.problems.agreement import disagreement
from retort.problems.base import Problem as ProblemKind
from retort.problems.base import Scale
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput

SHOWN = 10
ROUNDING = 1e-6
"""Of confidences, which are stored as 32-bit floats."""
SURELY = 0.01
LEAST_ROWS = 50
"""With fewer new rows, nothing is said about drift."""
MOST_ROWS, MOST_TEXTS = 20_000, 2_000
"""Rows of each night whose numbers and labels are compared, and texts that the classifier reads."""
LEAST_DIFFERENCE = {"text": 0.5, "chat": 0.5, "constituency": 0.5}
"""Of a suspicious label, where two good labels are rarely equal."""
_PAIRS = pa.schema([(name, pa.string()) for name in ("set", "example_id", "of_id")] + [("similarity", pa.float32())])
_CONTRADICTED = pa.schema(
    [(name, pa.string()) for name in ("example_id", "label", "cross_label")] + [("confidence", pa.float32())]
)

_WITH_TEXT = pa.schema([*_CONTRADICTED, pa.field("text", pa.string())])
_MOST_CONFIDENT = "FROM read_parquet($path) ORDER BY confidence DESC, example_id"


class CheckHygiene(Step):
    """Look for near-duplicates, leakage, suspicious labels and drift."""

    kind = "hygiene"
    version = 2
    artifact = Hygiene

    problem: Problem
    pool: ArtifactRef
    labeled: ArtifactRef
    test: ArtifactRef
    labels: ArtifactRef
    """The teacher's."""
    cross_labels: ArtifactRef | None = None
    """The first labels by students that were not trained on the rows."""
    last_pool: ArtifactRef | None = None
    """The pool of the last night that had another, or other labels."""
    last_labels: ArtifactRef | None = None

    @property
    def fingerprint_version(self) -> int:
        """Since version 2, of a large pool some rows are compared with each other."""
        return self.version if self.pool.rows > MOST_INDEXED else 1

    def run(self, context: StepContext) -> StepOutput:
        problem = problem_for(self.problem)
        context.progress(0, 3, "near-duplicates")
        pool, labeled, test = (Examples.open(context.store, ref) for ref in (self.pool, self.labeled, self.test))
        share = indexed_share(pool.manifest.rows)
        found = find(_texts(pool), _texts(labeled), _texts(test), share)
        context.progress(1, 3, "suspicious labels")
        suspicious = self._suspicious(problem, context)
        context.progress(2, 3, "drift")
        drift = self._drift(problem, context)

        pairs = chain((("pool", one) for one in found.within), (("test", one) for one in found.leaked))
        write_rows(context.folder / DUPLICATES, _PAIRS, ({"set": of, **_pair(one)} for of, one in pairs))
        drawn = pool.manifest.rows
        if share < 1:
            drawn = sum(is_drawn(row["example_id"], share) for row in pool.rows(["example_id"]))
        facts = PoolHygiene(
            within=_duplicates(found.within, drawn),
            leaked=_duplicates(found.leaked, test.manifest.rows),
            suspicious=suspicious,
            drift=drift,
        )
        (context.folder / FACTS).write_text(facts.model_dump_json(indent=1), encoding="utf-8")
        metrics = {"duplicate_share": facts.within.share, "leaked_share": facts.leaked.share}
        metrics |= {"suspicious_share": suspicious.share} if suspicious else {}
        metrics |= {"drift": drift.size} if drift and drift.changes else {}
        return StepOutput(rows=pool.manifest.rows, metrics=metrics)

    def _suspicious(self, problem: ProblemKind, context: StepContext) -> Suspicious | None:
        """Writes the suspicious labels, the most confidently contradicted first.

        After confident learning (Northcutt, Jiang and Chuang 2021): a cross-label counts if it is at least as confident
        as such labels are on average where they agree with the teacher.
        """
        if self.cross_labels is None:
            return None
        agreeing: dict[str, array[float]] = {}
        distances = array("d")
        for old, new in self._pairs(context):
            distances.append(disagreement(problem, old["label"], new["label"]))
            if not distances[-1]:
                agreeing.setdefault(self._group(new["label"]), array("d")).append(new["confidence"])
        least = {group: float(np.mean(confidences)) - ROUNDING for group, confidences in agreeing.items()}
        far = _far(problem, self.problem.kind, distances)
        contradicted = (
            {**old, "cross_label": new["label"], "confidence": new["confidence"]}
            for (old, new), distance in zip(self._pairs(context), distances, strict=True)
            if distance > 0 and distance >= far
            if new["confidence"] >= least.get(self._group(new["label"]), 1.0)
        )
        with scratch("hygiene") as folder:
            file = folder / "contradicted.parquet"
            count = write_rows(file, _WITH_TEXT, contradicted)
            batches = query(_MOST_CONFIDENT, path=str(file))
            rows = (row for batch in batches for row in batch.to_pylist())
            first = list(islice(rows, SHOWN))
            write_rows(context.folder / SUSPICIOUS, _CONTRADICTED, chain(first, rows))
        return Suspicious(rows=count, compared=len(distances), first=tuple(_shown(problem, row) for row in first))

    def _pairs(self, context: StepContext) -> Iterator[tuple[Row, Row]]:
        """The teacher's label and the cross-label of each row that has both."""
        assert self.cross_labels is not None
        columns = ["example_id", "text", "label", "confidence"]
        pool = Examples.open(context.store, self.pool).rows(["example_id"])
        files = [Pseudolabels.open(context.store, ref).rows(columns) for ref in (self.labels, self.cross_labels)]
        for _, (old, new) in aligned(pool, *files):
            if old is not None and new is not None:
                yield old, new

    def _group(self, label: str) -> str:
        """Labels whose confidences are alike: those of a class, or all."""
        return label if self.problem.kind == "classification" else ""

    def _drift(self, problem: ProblemKind, context: StepContext) -> Drift | None:
        if self.last_pool is None or self.last_labels is None:
            return None
        paths = [Examples.open(context.store, ref).path for ref in (self.last_pool, self.pool)]
        last, new = some_rows(paths[0], MOST_ROWS), new_rows(paths[0], paths[1], MOST_ROWS)
        changes: list[tuple[str, str, Effect, str]] = []
        enough = min(last.rows, new.rows) >= LEAST_ROWS
        if enough:
            lengths = [[len(text) for text in sample.texts] for sample in (last, new)]
            told = f"median {np.median(lengths[0]):.0f} characters, now {np.median(lengths[1]):.0f}"
            changes.append(("length of the texts", "Kolmogorov-Smirnov", of_numbers(*lengths), told))
            effect = of_texts(last.texts[:MOST_TEXTS], new.texts[:MOST_TEXTS])
            told = f"of a last and a new row, a classifier names the new one in {percent((effect.size + 1) / 2)} %"
            changes.append(("the texts", "2 AUC - 1", effect, told))
        if enough or not new.rows:  # without new rows the labels are others
            ids = set(new.ids) if enough else None
            old, now = (
                list(_labels(context, ref, among))
                for ref, among in ((self.last_labels, set(last.ids)), (self.labels, ids))
            )
            if min(len(old), len(now)) >= LEAST_ROWS:
                changes.append(_labels_change(problem, self.problem.kind, old, now))
        surely = SURELY / max(1, len(changes))
        return Drift(
            new=new.rows,
            last=last.rows,
            changes=tuple(
                Change(
                    what=what,
                    measure=measure,
                    size=effect.size,
                    p_value=effect.p_value,
                    surely=effect.p_value < surely,
                    details=told,
                )
                for what, measure, effect, told in changes
            ),
        )


def _texts(examples: Examples) -> Iterator[IdText]:
    return ((row["example_id"], row["text"]) for row in examples.rows(["example_id", "text"]))


def _pair(match: Match) -> Row:
    return {"example_id": match.example_id, "of_id": match.of_id, "similarity": match.similarity}


def _duplicates(found: Sequence[Match], compared: int) -> Duplicates:
    first = (one._replace(text=shortened(one.text), of_text=shortened(one.of_text)) for one in found[:SHOWN])
    return Duplicates(rows=len(found), compared=compared, first=tuple(DuplicateRow(**one._asdict()) for one in first))


def _shown(problem: ProblemKind, row: Row) -> SuspiciousLabel:
    label, cross = (shortened(problem.render(row["text"], row[name])) for name in ("label", "cross_label"))
    return SuspiciousLabel(
        example_id=row["example_id"],
        text=shortened(row["text"]),
        label=label,
        cross_label=cross,
        confidence=row["confidence"],
    )


def _far(problem: ProblemKind, kind: str, distances: Sequence[float]) -> float:
    """The least disagreement that is suspicious. Numbers hardly ever agree: theirs must lie three robust standard
    deviations out."""
    if isinstance(problem, Scale):
        return 3 * 1.4826 * float(np.median(distances)) if distances else 0.0
    return LEAST_DIFFERENCE.get(kind, 0.0)


def _labels(context: StepContext, ref: ArtifactRef, among: set[str] | None) -> Iterable[str]:
    rows = Pseudolabels.open(context.store, ref).rows(["example_id", "label"])
    return islice((row["label"] for row in rows if among is None or row["example_id"] in among), MOST_ROWS)


def _labels_change(
    problem: ProblemKind, kind: str, old: Sequence[str], new: Sequence[str]
) -> tuple[str, str, Effect, str]:
    if isinstance(problem, Scale):
        numbers = [[float(label) for label in labels] for labels in (old, new)]
        told = f"median {np.median(numbers[0]):g}, now {np.median(numbers[1]):g}"
        return "the teacher's numbers", "Kolmogorov-Smirnov", of_numbers(*numbers), told
    if kind in ("text", "chat"):
        lengths = [[len(label) for label in labels] for labels in (old, new)]
        told = f"median {np.median(lengths[0]):.0f} characters, now {np.median(lengths[1]):.0f}"
        return "length of the teacher's labels", "Kolmogorov-Smirnov", of_numbers(*lengths), told
    counts = [Counter(name for label in labels for name in _names(problem, kind, label)) for labels in (old, new)]
    if not all(counts):
        return "the teacher's labels", "total variation", Effect(float(any(counts)), float(not any(counts))), "none"
    shares = [{name: number / count.total() for name, number in count.items()} for count in counts]
    moved = sorted(counts[0] | counts[1], key=lambda name: -abs(shares[1].get(name, 0) - shares[0].get(name, 0)))[:3]
    told = ", ".join(
        f"{name} {percent(shares[0].get(name, 0))} % to {percent(shares[1].get(name, 0))} %" for name in moved
    )
    return "the teacher's labels", "total variation", of_categories(*counts), told


def _names(problem: ProblemKind, kind: str, label: str) -> list[str]:
    """The names of a label's parts, without where they are."""
    parts = problem.parts(label)
    return parts if kind in ("classification", "multi-label") else [part.rpartition(":")[0] or part for part in parts]
