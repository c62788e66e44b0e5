"""Baselines of the tiny student, from arrays to probabilities: the majority class and TF-IDF.

Label smoothing is trained like any soft target, with `smoothed` in place of a teacher. An encoder of TinyBERT's size is
trained like any encoder student (`retort.students.encoder`).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.io.batched import batched
from retort.problems.base import Floats

BATCH_ROWS = 4096
"""Rows that TF-IDF predicts at once."""


def majority(gold: NDArray[np.int32], num_classes: int) -> Floats:
    """The class frequencies of the training labels, `(classes,)`. Labels of -1 are ignored."""
    counts = np.bincount(_labels(gold), minlength=num_classes)
    frequencies: Floats = counts / counts.sum()
    return frequencies


def smoothed(gold: NDArray[np.int32], num_classes: int, smoothing: float) -> Floats:
    """Smoothed labels, `(rows, classes)`: `1 - smoothing` on the label plus `smoothing` spread evenly over all classes
    (Szegedy et al. 2016, section 7). NaN for rows without a label."""
    targets = (1 - smoothing) * np.eye(num_classes)[np.maximum(gold, 0)] + smoothing / num_classes
    return np.where((gold >= 0)[:, None], targets, np.nan)


def tfidf(
    train: Sequence[Sequence[str]], gold: NDArray[np.int32], rows: Iterable[Sequence[str]], num_classes: int
) -> Iterator[Floats]:
    """Logistic regression on TF-IDF of words and word pairs, separately for each field: yields its probabilities for
    batches of `rows`, `(batch, classes)`.

    It uses scikit-learn's defaults and the vocabulary of the labeled training rows. Classes without a training row get
    probability 0.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = _labels(gold)
    if len(np.unique(labels)) < 2:
        raise DataError(f"all labeled training rows have class {labels[0]}: TF-IDF needs two classes to tell apart")
    labeled = [_marked(row) for row, label in zip(train, gold, strict=True) if label >= 0]
    counters = [TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+") for _ in labeled[0]]
    columns = zip(counters, zip(*labeled, strict=True), strict=True)
    counts = hstack([counter.fit_transform(texts) for counter, texts in columns]).tocsr()
    model = LogisticRegression(max_iter=1000).fit(counts, labels)
    for batch in batched(rows, BATCH_ROWS):
        columns = zip(counters, zip(*map(_marked, batch), strict=True), strict=True)
        found = np.zeros((len(batch), num_classes))
        found[:, model.classes_] = model.predict_proba(hstack([counter.transform(texts) for counter, texts in columns]))
        yield found


def _marked(row: Sequence[str]) -> list[str]:
    """Adds a word to the start of each field, because TfidfVectorizer refuses a field that is empty in all rows."""
    return [f"head {text}" for text in row]


def _labels(gold: NDArray[np.int32]) -> NDArray[np.int32]:
    """The labels of the rows that have one. Raises DataError if there are none."""
    labels = gold[gold >= 0]
    if not len(labels):
        raise DataError("none of the training rows has a gold label, which a baseline learns from")
    return labels
