"""Multi-label classification: a set of classes per text, which may be empty.

A label is the JSON list of the set's names in the order of the problem, `["joy", "surprise"]`, and teachers write it
so. Every class is a unit of its own, which is `yes` or `no`: an encoder has one sigmoid per class, and a soft label is
the probability of each.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, Metric
from retort.errors import ConfigError, DataError, RowFault
from retort.problems.base import (
    Constraint,
    Floats,
    Mended,
    gbnf_text,
    lark_rules,
    lark_text,
    listed,
    quoted,
    ratio,
    row_name,
)
from retort.problems.classification import check_class_names, class_key, class_name, in_order
from retort.records.base import Label, ParseFailure

ABSENT, PRESENT = 0, 1
"""Indices of the two classes of each unit."""


class MultiLabel:
    """Sets of `labels`. Gold labels that are texts are JSON lists, or names between `separator`s.

    Raises ConfigError if there is no label, or two that `parse` could not distinguish.
    """

    def __init__(self, labels: Sequence[str], separator: str) -> None:
        if not labels:
            raise ConfigError("problem.labels names no class")
        check_class_names(labels)
        self._labels, self._separator = tuple(labels), separator
        self._index = {label: index for index, label in enumerate(labels)}
        self._by_key = {class_key(label): label for label in labels}

    @property
    def classes(self) -> tuple[str, ...]:
        return ("no", "yes")

    @property
    def sigmoids(self) -> tuple[str, ...]:
        return self._labels

    @property
    def instruction(self) -> str:
        return (
            "Give the classes of each text: all that apply, or none. Answer with a JSON list of their names and "
            "nothing else, [] if none applies. Classes: {schema}"
        )

    @property
    def schema(self) -> str:
        return ", ".join(map(quoted, self._labels))

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. A blank field means no label; [] is the empty set."""
        names = _names(row, columns.label, self._separator)
        if names is None:
            return None
        if unknown := [name for name in names if name not in self._index]:
            raise DataError(f"label '{unknown[0]}' is not a class; allowed: {listed(self._labels)}")
        return self._encoded(names)

    def _encoded(self, names: Iterable[str]) -> Label:
        return json.dumps(sorted(set(names), key=self._index.__getitem__), ensure_ascii=False)

    def render(self, text: str, label: Label) -> str:
        return label

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. Order and repetitions are ignored, and case and white space around a name.

        Reason codes: `empty`, `not-a-list`, `unknown-label`.
        """
        if not completion.strip():
            return ParseFailure("empty", "The completion is empty.", completion)
        try:
            names = json.loads(completion)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list):
            return ParseFailure("not-a-list", f"'{completion.strip()[:80]}' is no JSON list of names.", completion)
        known = [self._by_key.get(class_key(str(name))) for name in names]
        for name, label in zip(names, known, strict=True):
            if label is None:
                detail = f"'{str(name)[:80]}' is not a class; allowed: {listed(self._labels)}."
                return ParseFailure("unknown-label", detail, completion)
        return self._encoded(label for label in known if label is not None)

    def mend(self, text: str, completion: str) -> Mended:
        return Mended(completion)

    def uncut(self, completion: str) -> str:
        """See `Problem.uncut`. All of it, since a list that was cut is not closed."""
        return completion

    def constraint(self, text: str) -> Constraint:
        """See `Problem.constraint`. The names are in the order of the prompt, so none is written twice."""
        return self._constraint

    @cached_property
    def _constraint(self) -> Constraint:
        rules = self._rules(gbnf_text)
        return Constraint(grammar="".join(f"{name} ::= {' | '.join(rule)}\n" for name, rule in rules.items()))

    def grammar(self, text: str) -> str:
        return self._grammar

    @cached_property
    def _grammar(self) -> str:
        rules = self._rules(lark_text)
        return lark_rules({"label": rules.pop("root"), **rules})

    def _rules(self, literal: Callable[[str], str]) -> dict[str, list[str]]:
        """The alternatives of each rule: `first3` derives what may follow the opening bracket if labels 0 to 2 are
        absent, `more3` what may follow a name, from label 3 on."""
        last = len(self._labels)
        rules = {"root": [f"{literal('[')} first0"]}
        for at, label in enumerate(self._labels):
            rules[f"first{at}"] = [f"{literal(quoted(label))} more{at + 1}", f"first{at + 1}"]
            rules[f"more{at}"] = [f"{literal(f', {quoted(label)}')} more{at + 1}", f"more{at + 1}"]
        del rules["more0"]
        return {**rules, f"first{last}": [literal("]")], f"more{last}": [literal("]")]}

    def words(self, text: str) -> list[str]:
        return [text]

    def sites(self, num_words: int) -> NDArray[np.int64]:
        return np.zeros(len(self._labels), dtype=np.int64)

    def targets(self, text: str, label: Label) -> list[int]:
        present = decode(label)
        return [PRESENT if name in present else ABSENT for name in self._labels]

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        return np.ones((num_units, 2), dtype=np.bool_)

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """See `Problem.decide`. The classes that are more probable than not.

        Raises ValueError unless there is one unit for each class.
        """
        if len(probabilities) != len(self._labels):
            raise ValueError(f"{len(probabilities)} units of probabilities for {len(self._labels)} classes")
        shares = ratio(probabilities, np.broadcast_to(probabilities.sum(axis=1, keepdims=True), probabilities.shape))
        chosen = shares.argmax(axis=1)
        label = self._encoded(name for name, best in zip(self._labels, chosen, strict=True) if best == PRESENT)
        # The floor keeps the logarithm finite where both classes have probability 0.
        return label, float(np.exp(np.log(np.maximum(shares.max(axis=1), 1e-12)).mean()))

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        return gold == predicted

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """micro_f1: number of classes (true positives, false positives, false negatives); macro_f1: the same for each
        class, `(3 C,)`; jaccard: (intersection over union, 1), which is 1 for two empty sets; exact_match: (correct,
        1). A row without a prediction has no class, and is wrong even if its gold set is empty."""
        if metric == "exact_match":
            return np.array([float(gold == predicted), 1.0])
        wanted, found = decode(gold), decode(predicted) if predicted is not None else frozenset[str]()
        if metric == "jaccard":
            either = len(wanted | found)
            same = len(wanted & found) / either if either else float(predicted is not None)
            return np.array([same, 1.0])
        if metric == "micro_f1":
            return np.array([len(wanted & found), len(found - wanted), len(wanted - found)], dtype=np.float64)
        kinds = (wanted & found, found - wanted, wanted - found)
        return np.array([float(name in kind) for kind in kinds for name in self._labels])

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. micro_f1 is 1 if neither side has a class. macro_f1 is the mean F1 of all classes that
        occur in gold or predicted labels, and 0 if none does; the means are 0 without rows."""
        match metric:
            case "micro_f1":
                return _f1(sums, empty=1.0)
            case "macro_f1":
                counts = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, -1)  # (..., classes, 3)
                return ratio(_f1(counts).sum(axis=-1), (counts.sum(axis=-1) > 0).sum(axis=-1))
            case "jaccard" | "exact_match":
                return ratio(sums[..., 0], sums[..., 1])
        raise ConfigError(f"metric '{metric}' does not measure multi-label")

    def parts(self, label: Label) -> list[str]:
        return [name for name in self._labels if name in decode(label)]


def _f1(counts: Floats, empty: float = 0.0) -> Floats:
    """Counts `(..., 3)` of true positives, false positives and false negatives -> F1 `(...)`."""
    doubled = 2 * counts[..., 0]
    return ratio(doubled, doubled + counts[..., 1] + counts[..., 2], empty=empty)


@lru_cache(maxsize=1024)  # a row's metrics are computed in succession, and so are all systems' scores of a gold label
def decode(label: Label) -> frozenset[str]:
    """The names in a canonical label."""
    return frozenset(json.loads(label))


def infer_labels(rows: Iterable[Mapping[str, Any]], columns: ColumnsConfig, separator: str) -> list[str]:
    """The class names that occur, sorted as numbers if all are numbers, else as text.

    Raises DataError, naming the row, if a label cannot be read, or if there is no name.
    """
    found: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            found.update(_names(row, columns.label, separator) or ())
        except RowFault:
            raise  # it says where
        except DataError as error:
            raise DataError(f"{row_name(row, number)}: {error}") from None
    if not found:
        raise DataError(
            f"no labeled row has a class in the field '{columns.label}'; see data.columns.label, or list them in "
            "problem.labels"
        )
    return in_order(found)


def _names(row: Mapping[str, Any], column: str, separator: str) -> list[str] | None:
    """The names in a raw gold label; None if it is blank. Raises DataError if it is no set of names."""
    value = row.get(column)
    if isinstance(value, list | tuple):
        return list(_names_of_list(value))
    if isinstance(value, bool | dict | bytes):
        raise DataError(f"the label {value!r:.80} is no list of class names")
    if isinstance(value, str):
        return _names_of_text(value.strip(), separator)
    name = class_name(row, column)
    return None if name is None else [name]


def _names_of_text(text: str, separator: str) -> list[str] | None:
    if text.startswith("["):
        try:
            return list(_names_of_list(json.loads(text)))
        except (ValueError, RecursionError):
            raise DataError(f'the label \'{text[:80]}\' is no JSON list, as ["a", "b"]') from None
    return [name for part in text.split(separator) if (name := part.strip())] or None


def _names_of_list(values: Sequence[object]) -> Iterator[str]:
    for value in values:
        is_name = isinstance(value, str | int | float) and not isinstance(value, bool)
        name = class_name({"name": value}, "name") if is_name else None
        if name is None:
            raise DataError(f"the label holds {value!r:.80}, which is no class name")
        yield name
