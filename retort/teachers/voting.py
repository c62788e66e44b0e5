"""Combines several labels into one: samples of one teacher (self-consistency), or the teachers of an ensemble."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.config import Metric
from retort.problems.base import Floats, Problem, Scale, ratio
from retort.records.base import Label

_DECIMALS = 12
"""Decimals kept of a mean of votes. Sums differ in their last bits with the order of members, which must not decide
ties."""


def majority(labels: Sequence[Label | None]) -> tuple[Label, float] | None:
    """The most frequent label among one row's samples, and its share of all samples (self-consistency, Wang et al.
    2023).

    Ties go to the label seen first. Samples that could not be parsed (None) count toward the total; None if all are.
    """
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        return None
    (label, count) = counts.most_common(1)[0]  # equal counts keep their first-seen order
    return label, count / len(labels)


def minimum_risk(labels: Sequence[Label | None], problem: Problem, metric: Metric) -> tuple[Label, float] | None:
    """The minimum-Bayes-risk label (Kumar and Byrne 2004): the sample with the highest mean score against the *other*
    samples, each used once as the gold label, and that mean; 1.0 if there is no other sample.

    Ties go to the label seen first. A sample that could not be parsed (None) is not a candidate and contributes a score
    of 0 to every candidate; None if all are.
    """
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        return None
    if len(labels) == 1:
        return next(iter(counts)), 1.0

    def gain(candidate: Label) -> float:
        others = counts - Counter([candidate])
        scores = (n * _score(problem, metric, other, candidate) for other, n in others.items())
        return sum(scores) / (len(labels) - 1)

    gains = {candidate: gain(candidate) for candidate in counts}
    best = max(gains, key=gains.__getitem__)
    return best, gains[best]


def averaged(labels: Sequence[Label | None], problem: Scale) -> tuple[Label, float] | None:
    """One row's samples on a scale, averaged, and the confidence, times the share of the samples that could be parsed;
    None if none could."""
    present = [label for label in labels if label is not None]
    if not present:
        return None
    label, confidence = problem.merge(present, [1.0] * len(present))
    return label, confidence * len(present) / len(labels)


def _score(problem: Problem, metric: Metric, gold: Label, predicted: Label) -> float:
    return float(problem.value(metric, problem.statistics(metric, gold, predicted)))


def merge_votes(
    problem: Problem,
    text: str,
    labels: Sequence[Label | None],
    weights: Sequence[float],
    probabilities: Sequence[Floats | None] | None = None,
) -> tuple[Label, float] | None:
    """An ensemble's label for one row, and its confidence from `Problem.decide`.

    `labels`, `weights` (>= 0, on any scale) and `probabilities` are indexed by member. A member votes with its
    probabilities `(units, classes)` if it has any, otherwise with its label's classes. Members without a label are left
    out; the result is None if no member has one. If only members of weight 0 have a label, they count equally. Numbers
    on a scale are averaged instead, see `Scale.merge`.
    """
    present = [member for member, label in enumerate(labels) if label is not None]
    if not present:
        return None
    votes = [
        _vote(problem, text, labels[member], probabilities[member] if probabilities else None) for member in present
    ]
    shares = np.array([weights[member] for member in present], dtype=np.float64)
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(present), 1 / len(present))
    if isinstance(problem, Scale):
        return problem.merge([str(labels[member]) for member in present], shares.tolist())
    mean: Floats = np.tensordot(shares, np.stack(votes), axes=1)
    return problem.decide(text, mean.round(_DECIMALS))


def _vote(problem: Problem, text: str, label: Label | None, probabilities: Floats | None) -> Floats:
    if probabilities is not None:
        return probabilities
    assert label is not None, "members without a label do not vote"
    return np.eye(len(problem.classes))[problem.targets(text, label)]


class Members(NamedTuple):
    """Statistics of an ensemble's members on the labeled set."""

    weights: Floats
    """`(members,)`, >= 0, sum 1."""
    accuracies: Floats
    """`(members,)`: share of correct units among the rows that a member labeled; 0 if it labeled none."""
    agreement: Floats
    """`(members, members)`: share of equal labels among the rows that both members labeled; 0 if there are none."""


def learn_weights(
    problem: Problem, texts: Sequence[str], golds: Sequence[Label], members: Sequence[Sequence[Label | None]]
) -> Members:
    """Learn the weights for `merge_votes` from gold-labeled rows. `members[m][row]` is aligned with `texts` and
    `golds`; None where a member gave no label.

    For independent voters with two choices, the optimal vote uses the weights ln(p / (1 - p)), where p is a voter's
    accuracy (Nitzan and Paroush 1982). With K equally likely wrong choices, naive Bayes adds ln K. Teachers make the
    same mistakes, so K is measured: how rarely two of them that are both wrong about a unit agree. p is smoothed as
    (right + 1) / (units + 2). A member that is worse than guessing gets weight 0 instead of a negative one; if all are,
    the weights are equal. On a scale, a weight is instead 1 / the member's mean squared error, smoothed by one row
    with the mean error of all members: for independent errors, that average has the least error.
    """
    gold = _classes(problem, texts, golds)
    choices = [_classes(problem, texts, labels, like=golds) for labels in members]  # -1: no label
    right = np.array([np.sum(choice == gold) for choice in choices], dtype=np.float64)
    given = np.array([np.sum(choice >= 0) for choice in choices], dtype=np.float64)
    smoothed = (right + 1) / (given + 2)
    if isinstance(problem, Scale):
        weights = _inverse_errors(problem, golds, members)
    else:
        weights = np.maximum(np.log(smoothed / (1 - smoothed)) + np.log(_wrong_choices(choices, gold)), 0.0)
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(members), 1 / len(members))
    return Members(weights, ratio(right, given), _agreement(members))


def distinct_mistakes(
    problem: Problem, texts: Sequence[str], golds: Sequence[Label], members: Sequence[Sequence[Label | None]]
) -> float:
    """K of `learn_weights`, the effective number of wrong choices."""
    return _wrong_choices(
        [_classes(problem, texts, one, like=golds) for one in members], _classes(problem, texts, golds)
    )


def _inverse_errors(problem: Problem, golds: Sequence[Label], members: Sequence[Sequence[Label | None]]) -> Floats:
    """`(members,)`; all 0 if no member is ever wrong."""
    pairs = [[(gold, one) for gold, one in zip(golds, labels, strict=True) if one is not None] for labels in members]
    errors = [[problem.statistics("rmse", gold, one)[0] for gold, one in rows] for rows in pairs]
    usual = float(np.mean([error for rows in errors for error in rows] or [0.0]))
    return ratio(np.ones(len(members)), np.array([(sum(rows) + usual) / (len(rows) + 1) for rows in errors]))


def _classes(
    problem: Problem, texts: Sequence[str], labels: Sequence[Label | None], like: Sequence[Label] = ()
) -> NDArray[np.int64]:
    """The classes of all rows' units in one array; rows without a label have -1 per unit of their label in `like`."""
    rows = [
        problem.targets(text, label) if label is not None else [-1] * len(problem.targets(text, like[row]))
        for row, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    return np.array([index for row in rows for index in row], dtype=np.int64)


def _wrong_choices(choices: Sequence[NDArray[np.int64]], gold: NDArray[np.int64]) -> float:
    """Effective number of wrong choices (>= 1), from how often members that are both wrong agree; 1 without data."""
    both = same = 0
    for number, one in enumerate(choices):
        for other in choices[:number]:
            wrong = (one >= 0) & (other >= 0) & (one != gold) & (other != gold)
            both += int(wrong.sum())
            same += int((wrong & (one == other)).sum())
    return (both + 1) / (same + 1)


def _agreement(members: Sequence[Sequence[Label | None]]) -> Floats:
    codes: dict[Label, int] = {}
    labels = np.array(
        [[-1 if label is None else codes.setdefault(label, len(codes)) for label in member] for member in members]
    )
    given = labels >= 0
    both = given[:, None] & given[None]
    same = both & (labels[:, None] == labels[None])
    return ratio(same.sum(axis=2, dtype=np.float64), both.sum(axis=2, dtype=np.float64))
