"""`pseudolabel` by an ensemble: merges the labels of several teachers.

The most accurate teacher alone is not always the best (arXiv 2012.06048): members that err on different rows correct
each other. So each member's accuracy on the labeled set, its weight and its agreement with the others are reported; if
each row has weights of its own, their mean over the pool.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import tee
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import OWN_ROWS, ROWS, Pseudolabels, written_failures
from retort.config import Problem
from retort.io.batched import batched
from retort.io.parquet import PSEUDOLABELS, Row, aligned, write_rows
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, Example, ParseFailure
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput
from retort.teachers.local_weights import LocalWeights
from retort.teachers.voting import Members, learn_weights, merge_votes

Weighed = tuple[Row, Sequence[float]]
"""A row, and the weight of each member for it."""
WEIGHED_ROWS = 1024
"""Rows whose likeness to all labeled rows is in memory at once."""


class PseudolabelEnsemble(Step):
    """Merge the labels of several teachers."""

    kind = "pseudolabel"
    version = 2
    artifact = Pseudolabels

    problem: Problem
    teacher: Literal["ensemble"] = "ensemble"
    merge: Literal["vote", "weighted", "locally-weighted"]
    asked: bool
    """Whether all members are LLMs, which label the labeled set out of sample, so that weights can be learned."""
    soft: bool
    """Whether the rows keep probabilities: the weighted mean of the members'."""
    members: tuple[ArtifactRef, ...]
    """Each teacher's labels for the pool, in the order of the config."""
    pool: ArtifactRef
    labeled: ArtifactRef
    kinds: Runtime[list[str]]
    """The members' kinds."""

    @property
    def fingerprint_version(self) -> int:
        """Since version 2, soft labels are the weighted mean; with equal weights that is version 1's plain mean."""
        return self.version if self.soft and self.merge != "vote" else 1

    def run(self, context: StepContext) -> StepOutput:
        problem = problem_for(self.problem)
        found = [Pseudolabels.open(context.store, ref) for ref in self.members]
        gold = Examples.open(context.store, self.labeled).gold()
        known = _labeled_votes(gold, found) if self.asked else None
        members = learn_weights(problem, *known) if known else None
        local = LocalWeights(problem, *known) if known and self.merge == "locally-weighted" else None
        fixed = members.weights.tolist() if members and self.merge == "weighted" else [1.0] * len(found)
        if members:
            own_weights = local.of_labeled().tolist() if local else [fixed] * len(gold)
            own_rows = zip(_rows_of(gold), own_weights, strict=True)
            own = self._merged(problem, own_rows, [one.own_rows() for one in found])
            write_rows(context.folder / OWN_ROWS, PSEUDOLABELS, (row for row, _ in own))
        counts: Counter[str] = Counter()
        agreement, total = Agreement(len(found)), np.zeros(len(found))

        def pool() -> Iterator[Weighed]:
            for row, weights in _weighed(Examples.open(context.store, self.pool).rows(), local, fixed):
                total[:] += np.array(weights) / max(sum(weights), 1e-12)
                yield row, weights

        def rows() -> Iterator[Row]:
            for row, votes in self._merged(problem, pool(), [one.rows() for one in found]):
                counts["asked"] += 1
                agreement.add(votes)
                if row["label"] is None:
                    counts["missing"] += 1
                    set_aside(row["example_id"], ParseFailure("missing", "No teacher gave a label.", ""))
                else:
                    yield row

        with written_failures(context.folder) as set_aside:
            count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        return StepOutput(
            rows=count,
            counts={**counts, "failures": counts["asked"] - count},
            metrics={"success_share": count / counts["asked"]},
            details={
                "members": self._facts(
                    members, (total / counts["asked"]).tolist() if local else fixed, agreement.shares
                )
            },
        )

    def _merged(
        self, problem: ProblemKind, rows: Iterator[Weighed], readers: Sequence[Iterator[Row]]
    ) -> Iterator[tuple[Row, list[str | None]]]:
        """Yield each row with the ensemble's label (None if no member has one), and the members' labels. Each of the
        `rows` comes with the members' weights for it."""
        weighed, again = tee(rows)
        known = aligned((row for row, _ in again), *readers)
        for (row, weights), (_, votes) in zip(weighed, known, strict=True):
            yield self._merged_row(problem, row, votes, weights), [vote["label"] if vote else None for vote in votes]

    def _merged_row(self, problem: ProblemKind, row: Row, votes: Sequence[Row | None], weights: Sequence[float]) -> Row:
        shape = (-1, len(problem.classes))
        labels = [vote["label"] if vote else None for vote in votes]
        soft = [
            np.asarray(vote["probabilities"], dtype=np.float64).reshape(shape)
            if vote and vote["probabilities"] is not None
            else None
            for vote in votes
        ]
        merged = merge_votes(problem, row["text"], labels, weights, soft)
        label, confidence = merged if merged else (None, 0.0)
        mean = _weighted_mean(soft, weights) if self.soft and merged else None
        return {
            **row,
            "label": label,
            "confidence": confidence,
            "labeler": "teachers",
            "probabilities": None if mean is None else mean.astype(np.float16).ravel(),
        }

    def _facts(
        self, members: Members | None, weights: Sequence[float], agreement: NDArray[np.float64]
    ) -> list[dict[str, object]]:
        """One entry per member. `agreement` lists, for each member, the share of rows that both label alike."""
        return [
            {
                "kind": kind,
                "weight": weights[index],
                "labelled_accuracy": None if members is None else float(members.accuracies[index]),
                "agreement": agreement[index].round(4).tolist(),
            }
            for index, kind in enumerate(self.kinds)
        ]


def _weighed(rows: Iterator[Row], local: LocalWeights | None, fixed: list[float]) -> Iterator[Weighed]:
    """Each row with the members' weights for it: `fixed` ones without `local` ones."""
    for batch in batched(rows, WEIGHED_ROWS):
        weights = local.of([row["text"] for row in batch]).tolist() if local else [fixed] * len(batch)
        yield from zip(batch, weights, strict=True)


class Agreement:
    """Counts how often each pair of members labels a row alike."""

    def __init__(self, num_members: int) -> None:
        self._alike = np.zeros((num_members, num_members))
        self._both = np.zeros_like(self._alike)

    def add(self, votes: Sequence[str | None]) -> None:
        given = np.array([vote is not None for vote in votes])
        codes = np.unique([vote or "" for vote in votes], return_inverse=True)[1]
        self._both += np.outer(given, given)
        self._alike += np.outer(given, given) & (codes[:, None] == codes[None])

    @property
    def shares(self) -> NDArray[np.float64]:
        """`(members, members)`: shares, in [0, 1], of the rows that both labeled."""
        shares: NDArray[np.float64] = self._alike / np.maximum(self._both, 1)
        return shares


def _weighted_mean(soft: Sequence[NDArray[np.float64] | None], weights: Sequence[float]) -> NDArray[np.float64] | None:
    """Mean `(units, classes)` over the members that have probabilities; the plain mean if all their weights are 0."""
    known = [(one, weight) for one, weight in zip(soft, weights, strict=True) if one is not None]
    if not known:
        return None
    given = [weight for _, weight in known]
    mean: NDArray[np.float64] = np.average([one for one, _ in known], axis=0, weights=given if any(given) else None)
    return mean


def _rows_of(gold: list[Example]) -> Iterator[Row]:
    return ({"example_id": example.example_id, "text": example.text} for example in gold)


def _labeled_votes(
    gold: list[Example], found: list[Pseudolabels]
) -> tuple[list[str], list[str], list[list[str | None]]]:
    """Texts and gold labels of the labeled set, and each member's labels, where each row was labeled with the others as
    demonstrations."""
    labels = [{row["example_id"]: row["label"] for row in one.own_rows()} for one in found]
    texts, golds = [example.text for example in gold], [str(example.label) for example in gold]
    votes = [[member.get(example.example_id) for example in gold] for member in labels]
    return texts, golds, votes
