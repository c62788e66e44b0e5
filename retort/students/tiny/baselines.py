"""What a tiny student is measured against, from arrays to probabilities: the floor, and words counted.

Label smoothing is a soft target like another, so it is trained as one: `smoothed` in place of a teacher. An encoder of
TinyBERT's size is trained as every encoder student is (`retort.students.encoder`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retort.errors import DataError
from retort.problems.base import Floats


def majority(gold: NDArray[np.int64], num_classes: int, num_rows: int) -> Floats:
    """The classes' shares among the training labels, for each row: `(rows, classes)`. Labels of -1 are none."""
    counts = np.bincount(_labels(gold), minlength=num_classes)
    return np.tile(counts / counts.sum(), (num_rows, 1))


def smoothed(gold: NDArray[np.int64], num_classes: int, smoothing: float) -> Floats:
    """`(rows, classes)`: `1 - smoothing` on the label, the rest spread over all classes (Szegedy et al. 2016, section
    7). NaN for rows without a label."""
    targets = (1 - smoothing) * np.eye(num_classes)[np.maximum(gold, 0)] + smoothing / num_classes
    return np.where((gold >= 0)[:, None], targets, np.nan)


def tfidf(
    train: Sequence[Sequence[str]], gold: NDArray[np.int64], rows: Sequence[Sequence[str]], num_classes: int
) -> Floats:
    """Logistic regression on TF-IDF of words and pairs of words, each field's apart: `(rows, classes)`.

    scikit-learn's defaults; the vocabulary is that of the labelled training rows. A class that they lack gets 0.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = _labels(gold)
    if len(np.unique(labels)) < 2:
        raise DataError(f"all labelled training rows have class {labels[0]}: TF-IDF needs two classes to tell apart")
    labeled = [_marked(row) for row, label in zip(train, gold, strict=True) if label >= 0]
    counters = [TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+") for _ in labeled[0]]
    columns = zip(counters, zip(*labeled, strict=True), strict=True)
    counts = hstack([counter.fit_transform(texts) for counter, texts in columns]).tocsr()
    model = LogisticRegression(max_iter=1000).fit(counts, labels)
    columns = zip(counters, zip(*map(_marked, rows), strict=True), strict=True)
    found = np.zeros((len(rows), num_classes))
    found[:, model.classes_] = model.predict_proba(hstack([counter.transform(texts) for counter, texts in columns]))
    return found


def _marked(row: Sequence[str]) -> list[str]:
    """A word at the head of each field, since a counter refuses a field that is empty in all rows."""
    return [f"head {text}" for text in row]


def _labels(gold: NDArray[np.int64]) -> NDArray[np.int64]:
    labels = gold[gold >= 0]
    if not len(labels):
        raise DataError("none of the training rows has a gold label, which a baseline learns from")
    return labels
