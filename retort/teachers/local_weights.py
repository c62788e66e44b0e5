"""Weights of an ensemble's members for each row by itself: the most accurate teacher is not the best for every row
(arXiv 2012.06048).

How good a member is for a row is estimated from the labeled rows that are most like it (local accuracy, Woods,
Kegelmeyer and Bowyer 1997): a mean over all labeled rows, weighted by the squared cosine of TF-IDF vectors, that
begins with the member's mean on all of them as if seen `PRIOR_ROWS` times. A row like none of them gets the weights of
all.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from retort.problems.base import Floats, Problem, Scale, ratio
from retort.records.base import Label
from retort.teachers.voting import distinct_mistakes, learn_weights

PRIOR_ROWS = 1.0


class LocalWeights:
    """Learned from the labeled rows. `members[m][row]` is aligned with `texts` and `golds`; None where a member gave no
    label, see `learn_weights`."""

    def __init__(
        self, problem: Problem, texts: Sequence[str], golds: Sequence[Label], members: Sequence[Sequence[Label | None]]
    ) -> None:
        self._texts, self._is_scale = texts, isinstance(problem, Scale)
        self._given = np.array([[label is not None for label in labels] for labels in members], dtype=np.float64)
        scored = [
            [
                0.0 if one is None else _score(problem, text, gold, one)
                for text, gold, one in zip(texts, golds, labels, strict=True)
            ]
            for labels in members
        ]
        self._scores: Floats = np.array(scored, dtype=np.float64)
        """`(members, labeled rows)`: shares of right units; on a scale, squared errors."""
        self._odds = np.log(distinct_mistakes(problem, texts, golds, members))
        self._everywhere = learn_weights(problem, texts, golds, members).weights

    def of(self, texts: Sequence[str]) -> Floats:
        """`(rows, members)`, >= 0."""
        if self._vectorizer is None or not texts:
            return np.tile(self._everywhere, (len(texts), 1))
        return self._weights((self._vectorizer.transform(texts) @ self._vectors.T).toarray())

    def of_labeled(self) -> Floats:
        """Like `of`, for the labeled rows, each of them as if it were not one of them."""
        if self._vectorizer is None:
            return self.of(self._texts)
        alike = (self._vectors @ self._vectors.T).toarray()
        np.fill_diagonal(alike, 0.0)
        return self._weights(alike)

    def _weights(self, alike: Floats) -> Floats:
        """`alike` is `(rows, labeled rows)`, in [0, 1]."""
        scored = self._scores.sum(axis=1)
        if self._is_scale:
            usual = float(ratio(self._scores.sum(), self._given.sum()))
            mean = (scored + usual) / (self._given.sum(axis=1) + 1)
        else:
            mean = (scored + 1) / (self._given.sum(axis=1) + 2)
        alike = alike**2  # many rows that are a little alike say less than one that is very much so
        local: Floats = (alike @ self._scores.T + PRIOR_ROWS * mean) / (alike @ self._given.T + PRIOR_ROWS)
        if self._is_scale:
            return ratio(np.ones_like(local), local)
        weights: Floats = np.maximum(np.log(local / (1 - local)) + self._odds, 0.0)
        return weights

    @cached_property
    def _vectorizer(self) -> Any:
        """None if the labeled rows have no words."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            return TfidfVectorizer(token_pattern=r"\S+").fit(self._texts)
        except ValueError:
            return None

    @cached_property
    def _vectors(self) -> Any:
        return self._vectorizer.transform(self._texts)


def _score(problem: Problem, text: str, gold: Label, label: Label) -> float:
    if isinstance(problem, Scale):
        return float(problem.statistics("rmse", gold, label)[0])
    return float(np.mean(np.array(problem.targets(text, gold)) == np.array(problem.targets(text, label))))
