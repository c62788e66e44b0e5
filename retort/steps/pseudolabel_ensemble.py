"""`pseudolabel` by an ensemble: merges the labels of several teachers.

The most accurate teacher alone is not always the best (arXiv 2012.06048): members that err on different rows correct
each other. So each member's accuracy on the labeled set, its weight and its agreement with the others are reported.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import OWN_ROWS, ROWS, Pseudolabels, write_failures
from retort.config import Problem
from retort.io.parquet import PSEUDOLABELS, Row, write_rows
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, Example, ParseFailure
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput
from retort.teachers.voting import Members, learn_weights, merge_votes


class PseudolabelEnsemble(Step):
    """Merge the labels of several teachers."""

    kind = "pseudolabel"
    version = 2
    artifact = Pseudolabels

    problem: Problem
    teacher: Literal["ensemble"] = "ensemble"
    merge: Literal["vote", "weighted"]
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
        return self.version if self.soft and self.merge == "weighted" else 1

    def run(self, context: StepContext) -> StepOutput:
        problem = problem_for(self.problem)
        found = [Pseudolabels.open(context.store, ref) for ref in self.members]
        gold = Examples.open(context.store, self.labeled).gold()
        members = _members(problem, gold, found) if self.asked else None
        weighted = members is not None and self.merge == "weighted"
        weights = members.weights.tolist() if members and weighted else [1.0] * len(found)
        if members:
            own = self._merged(problem, _rows_of(gold), [one.own_rows() for one in found], weights)
            write_rows(context.folder / OWN_ROWS, PSEUDOLABELS, (row for row, _ in own))
        failures: dict[str, ParseFailure] = {}
        counts: Counter[str] = Counter()
        agreement = Agreement(len(found))

        def rows() -> Iterator[Row]:
            pool = Examples.open(context.store, self.pool).rows()
            for row, votes in self._merged(problem, pool, [one.rows() for one in found], weights):
                counts["asked"] += 1
                agreement.add(votes)
                if row["label"] is None:
                    counts["missing"] += 1
                    failures[row["example_id"]] = ParseFailure("missing", "No teacher gave a label.", "")
                else:
                    yield row

        count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
        write_failures(context.folder, failures)
        return StepOutput(
            rows=count,
            counts={**counts, "failures": counts["asked"] - count},
            metrics={"success_share": count / counts["asked"]},
            details={"members": self._facts(members, weights, agreement.shares)},
        )

    def _merged(
        self, problem: ProblemKind, rows: Iterator[Row], readers: Sequence[Iterator[Row]], weights: Sequence[float]
    ) -> Iterator[tuple[Row, list[str | None]]]:
        """Yield each row with the ensemble's label (None if no member has one), and the members' labels.

        All files are in the order of `rows`, so one pass is enough.
        """
        heads = [next(reader, None) for reader in readers]
        for row in rows:
            votes: list[Row | None] = []
            for index, head in enumerate(heads):
                matches = head is not None and head["example_id"] == row["example_id"]
                votes.append(head if matches else None)
                if matches:
                    heads[index] = next(readers[index], None)
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


def _members(problem: ProblemKind, gold: list[Example], found: list[Pseudolabels]) -> Members:
    """Learn accuracies and weights from the labeled set, where each row was labeled with the others as
    demonstrations."""
    labels = [{row["example_id"]: row["label"] for row in one.own_rows()} for one in found]
    texts, golds = [example.text for example in gold], [str(example.label) for example in gold]
    votes = [[member.get(example.example_id) for example in gold] for member in labels]
    return learn_weights(problem, texts, golds, votes)
