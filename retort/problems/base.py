"""What a label is. A problem is the only place that looks inside a label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, Metric
from retort.records.base import Label, ParseFailure

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a decoder may write for one example. Exactly one field is set."""

    choice: tuple[str, ...] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A grammar in GBNF (as xgrammar and llama.cpp read it), root rule `root`."""


class Problem(Protocol):
    """A label as text, as units with classes, and as statistics.

    A *unit* is what a student decides on: the whole text for classification; for slots the request's intent
    (unit 0) and each word (units 1 ..); for constituency three kinds of units in and between words; a free text has
    none. Every unit has one of `classes`; probabilities are `(units, classes)`.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes. Probabilities are joined by these names, never by position."""
        ...

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """The gold label of a raw data row, or None where the row has none.

        Raises DataError with one sentence (without file and line, which the reader adds) for a label that is
        outside the schema or does not fit the text.
        """
        ...

    def render(self, text: str, label: Label) -> str:
        """The label as a teacher writes it and people read it."""
        ...

    @property
    def instruction(self) -> str:
        """What a teacher is told to do, with {schema} where `schema` goes."""
        ...

    @property
    def schema(self) -> str:
        """The labels that exist, as a teacher reads them."""
        ...

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """The label in a teacher's completion for `text`. Never raises."""
        ...

    def mend(self, text: str, completion: str) -> str:
        """A completion that `parse` refuses, with what is unambiguous put right; unchanged where nothing is. Never
        raises."""
        ...

    def constraint(self, text: str) -> Constraint | None:
        """What a constrained decoder may write for `text`; None: anything."""
        ...

    def grammar(self, text: str) -> str | None:
        """Of the labels of `text` as `render` writes them, so that `parse` reads whatever it derives; None: anything.

        In llguidance's Lark, whose rules can count (a teacher's decoder cannot): rules to write `label` by.
        """
        ...

    def words(self, text: str) -> list[str]:
        """The text's units of tokenisation: words for tagging."""
        ...

    def sites(self, num_words: int) -> NDArray[np.int64]:
        """Which word each unit of a text is read at, `(units,)`: 0 is the mark before all words, 1 the first word."""
        ...

    def targets(self, text: str, label: Label) -> list[int]:
        """Class index of each unit."""
        ...

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        """`(units, classes)`: the classes that each unit may take."""
        ...

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """The most probable legal label from `(units, classes)` probabilities, and its confidence in [0, 1]: the
        geometric mean over units of the chosen class's probability."""
        ...

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        """Whether a prediction is all right. A gold label may hold more than one can predict, so `==` is not enough."""
        ...

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """What one row adds to the sums that the metric is computed from, `(d,)`. `predicted` is None where
        there is no label: counted as wrong."""
        ...

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """The metric's value in [0, 1] (kappa: [-1, 1]) from summed statistics `(..., d)` -> `(...)`."""
        ...

    def parts(self, label: Label) -> list[str]:
        """Names for a table of errors: the class; for slots the intent and each span's type with its words' range."""
        ...


def is_put_right(problem: Problem, text: str, label: Label, probabilities: Floats) -> bool:
    """Whether `label`, decided on `(units, classes)` probabilities, is not that of each unit's most probable class
    alone: those together are no label (a slot that begins inside, a tree whose levels leave one out)."""
    alone = np.where(problem.allowed(len(probabilities)), probabilities, -1.0).argmax(axis=1)
    return not np.array_equal(problem.targets(text, label), alone)


def gbnf_text(text: str) -> str:
    """A text as a grammar in GBNF has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'


def lark_text(text: str) -> str:
    """A text as a grammar in Lark has it."""
    return json.dumps(text, ensure_ascii=False)


def lark_rules(rules: Mapping[str, Sequence[str]]) -> str:
    """A grammar in Lark, from the alternatives of each rule."""
    return "\n".join(f"{name}: {' | '.join(alternatives)}" for name, alternatives in rules.items())


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error message: all of them, or the first `most` and how many there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} ... ({len(names)} in all)"


def ratio(numerator: Floats, denominator: Floats, empty: float = 0.0) -> Floats:
    """`numerator / denominator`, elementwise; `empty` where the denominator is 0."""
    result = np.full(np.shape(denominator), empty)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result
