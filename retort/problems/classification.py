"""Classification: one class per text. The label is the class name; the only unit is the whole text."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retort.config import ColumnsConfig, Metric
from retort.errors import ConfigError, DataError
from retort.problems.base import (
    Floats,
    check_apart,
    gold_text,
    listed,
    looks,
    needs_quotes,
    quoted,
    ratio,
)
from retort.problems.choice import Choice
from retort.records.base import Label, ParseFailure


class Classification(Choice):
    """Classes in the given order, which must be from low to high for `quadratic_weighted_kappa`.

    Raises ConfigError for fewer than two classes, or two that `parse` could not distinguish.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        if len(labels) < 2:
            raise ConfigError(f"problem.labels needs at least two classes, not {len(labels)}")
        self._classes = self._choices = tuple(labels)
        self._index = {label: index for index, label in enumerate(labels)}
        check_class_names(labels)
        self._is_quoted = needs_quotes(labels)
        self._by_key = {class_key(quoted(label)): label for label in labels if self._is_quoted}
        self._by_key |= {class_key(label): label for label in labels}

    @property
    def instruction(self) -> str:
        return "Give the class of each text. Answer with the name of the class and nothing else. Classes: {schema}"

    @property
    def schema(self) -> str:
        return ", ".join(map(quoted, self._classes) if self._is_quoted else self._classes)

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. Numbers are read as decimal text; a blank label means no label."""
        name = class_name(row, columns.label)
        if name is not None and name not in self._index:
            raise DataError(f"label '{name}' is not a class; allowed: {listed(self._classes)}")
        return name

    def render(self, text: str, label: Label) -> str:
        return label

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. Case, outer white space and a final period are ignored, and quotes if the
        prompt has the names in quotes.

        Reason codes: `empty`, `unknown-label`.
        """
        if not completion.strip():
            return ParseFailure("empty", "The completion is empty.", completion)
        label = self._by_key.get(class_key(completion))
        if label is None:
            detail = f"'{completion.strip()[:80]}' is not a class; allowed: {listed(self._classes)}."
            return ParseFailure("unknown-label", detail, completion)
        return label

    def targets(self, text: str, label: Label) -> list[int]:
        return [self._index[label]]

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        (scores,) = probabilities
        best = int(np.argmax(scores))
        return self._classes[best], float(ratio(scores[best], np.sum(scores)))

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        return gold == predicted

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """accuracy: (correct, 1). Otherwise the flattened confusion matrix `(C, C + 1)`, gold by predicted, whose last
        column counts rows without a prediction."""
        if metric == "accuracy":
            return np.array([float(gold == predicted), 1.0])
        confusion = np.zeros(self.num_cells)
        confusion[self.cell(gold, predicted)] = 1.0
        return confusion

    @property
    def cell_metrics(self) -> tuple[Metric, ...]:
        return ("macro_f1", "quadratic_weighted_kappa")

    @property
    def num_cells(self) -> int:
        return len(self._classes) * (len(self._classes) + 1)

    def cell(self, gold: Label, predicted: Label | None) -> int:
        """See `HasCells.cell`."""
        num_classes = len(self._classes)
        column = num_classes if predicted is None else self._index[predicted]
        return self._index[gold] * (num_classes + 1) + column

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. Without rows it is 0."""
        num_classes = len(self._classes)
        match metric:
            case "accuracy":
                return ratio(sums[..., 0], sums[..., 1])
            case "macro_f1":
                return macro_f1(sums.reshape(*sums.shape[:-1], num_classes, num_classes + 1))
            case "quadratic_weighted_kappa":
                return quadratic_weighted_kappa(sums.reshape(*sums.shape[:-1], num_classes, num_classes + 1))
        raise ConfigError(f"metric '{metric}' does not measure classification")

    def parts(self, label: Label) -> list[str]:
        return [label]


def macro_f1(confusion: Floats) -> Floats:
    """Confusion counts `(..., C, C + 1)` -> `(...)` in [0, 1]: the mean F1 of all classes that occur in gold or
    predicted labels, scikit-learn's default. Rows without a prediction only lower the recall of their gold class."""
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    occurrences = confusion.sum(axis=-1) + confusion.sum(axis=-2)[..., :-1]
    return ratio(ratio(2 * correct, occurrences).sum(axis=-1), (occurrences > 0).sum(axis=-1))


def quadratic_weighted_kappa(confusion: Floats) -> Floats:
    """Confusion counts `(..., C, C + 1)` -> kappa `(...)` in [-1, 1] (Cohen 1968, weights (i - j)^2).

    A row without a prediction counts as predicted in the class farthest from its gold class (the lowest if both ends
    are equally far). If all gold and predicted labels are the same class, chance agreement is perfect and kappa is 0/0;
    it is set to 1, since every prediction is right. Without rows it is 0.
    """
    num_classes = confusion.shape[-2]
    ranks = np.arange(num_classes)
    farthest = np.where(2 * ranks >= num_classes - 1, 0, num_classes - 1)
    answered = confusion[..., :-1] + confusion[..., -1:] * (farthest[:, None] == ranks)
    weights = (ranks[:, None] - ranks) ** 2
    expected = answered.sum(axis=-1)[..., :, None] * answered.sum(axis=-2)[..., None, :]
    total = answered.sum(axis=(-2, -1))
    disagreement = ratio((weights * answered).sum(axis=(-2, -1)) * total, (weights * expected).sum(axis=(-2, -1)))
    return np.where(total > 0, 1.0 - disagreement, 0.0)


def infer_labels(rows: Iterable[Mapping[str, Any]], columns: ColumnsConfig, *, ordered: bool) -> list[str]:
    """The class names that occur, sorted as numbers if all are numbers, else as text.

    Raises DataError for fewer than two, ConfigError if `ordered` classes are not numbers.
    """
    names: set[str] = set()
    unread: DataError | None = None
    for row in rows:
        try:
            names |= {name} if (name := class_name(row, columns.label)) is not None else set()
        except DataError as error:  # ingest refuses such a row by file and line
            unread = unread or error
    if len(names) < 2:
        raise unread or DataError(
            f"the labeled rows hold {len(names)} different classes in the field '{columns.label}', at least 2 are "
            "needed; see data.columns.label, or list them in problem.labels"
        )
    if ordered and not all(map(_is_number, names)):
        raise ConfigError("problem.labels must list the classes from low to high, since problem.ordered is true")
    return in_order(names)


def in_order(names: Collection[str]) -> list[str]:
    """Sorted as numbers if all are numbers, else as text."""
    if all(map(_is_number, names)):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def class_name(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    # A column of integers with missing values is read as floats (3.0).
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return gold_text(row, column) or None


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def check_class_names(labels: Sequence[str]) -> None:
    """Raises ConfigError for a name that is blank or given twice, and for two that `parse` or a reader of the prompt
    could not distinguish."""
    for label in labels:
        if not class_key(label):
            raise ConfigError(f"problem.labels: '{label}' is no name")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise ConfigError(f"problem.labels: '{twice[0]}' is listed twice")
    difference = "case, white space, a final period and how Unicode writes a letter"
    check_apart("problem.labels", labels, lambda name: class_key(looks(name)), difference)


def class_key(name: str) -> str:
    """The form in which a completion is compared with class names."""
    return name.strip().removesuffix(".").rstrip().casefold()
