"""Two-sample tests: whether tonight's rows are drawn as those of the last night were. Sizes of effect are in [0, 1].

With many rows a test finds any difference, so what counts is the size of the effect, and the p-value only says whether
it could be chance.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RARE = 5
"""Categories expected fewer times are counted as one, for the chi-square distribution to hold (Cochran 1954)."""
FEATURES = 2**16


class Effect(NamedTuple):
    size: float
    p_value: float


def of_numbers(before: Sequence[float], after: Sequence[float]) -> Effect:
    """Kolmogorov-Smirnov: the largest distance between the two cumulative distributions. Neither may be empty."""
    from scipy.stats import ks_2samp

    found = ks_2samp(before, after, method="asymp")
    return Effect(float(found.statistic), float(found.pvalue))


def of_categories(before: Counter[str], after: Counter[str]) -> Effect:
    """The total variation distance between the shares, with the chi-square test of homogeneity. Both must have
    counts."""
    from scipy.stats import chi2_contingency

    names = sorted(before.keys() | after.keys())
    counts = np.array([[one[name] for name in names] for one in (before, after)], dtype=np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    rare = expected < RARE
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)]) if rare.any() else counts
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    p_value = float(chi2_contingency(pooled).pvalue) if pooled.shape[1] > 1 else 1.0
    return Effect(float(np.abs(shares[0] - shares[1]).sum() / 2), p_value)


def of_texts(before: Sequence[str], after: Sequence[str]) -> Effect:
    """A classifier two-sample test (Lopez-Paz and Oquab 2017): logistic regression on runs of characters learns on
    every other row to tell the nights apart, and ranks the rest. The size is 2 AUC - 1, at least 0; p is that of the
    ranks (Mann-Whitney, one-sided). Both must have four rows or more."""
    from scipy.stats import mannwhitneyu
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    reader = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=FEATURES, norm="l2")
    halves = [(texts[::2], texts[1::2]) for texts in (before, after)]
    (learned, judged) = zip(*halves, strict=True)
    model = LogisticRegression(class_weight="balanced", max_iter=200)
    nights = np.repeat([0, 1], [len(texts) for texts in learned])
    model.fit(reader.transform(list(itertools.chain(*learned))), nights)
    old, new = (model.decision_function(reader.transform(texts)) for texts in judged)
    found = mannwhitneyu(new, old, alternative="greater")
    return Effect(max(0.0, 2 * float(found.statistic) / (len(old) * len(new)) - 1), float(found.pvalue))
