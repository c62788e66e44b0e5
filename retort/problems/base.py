"""The interface of problems. Only a problem looks inside a label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, Metric
from retort.records.base import Label, ParseFailure

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a teacher's constrained decoder may write for one text: one of `choice`, or what `grammar` derives."""

    choice: tuple[str, ...] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A grammar in GBNF (as xgrammar and llama.cpp read it), root rule `root`."""
    lark: str | None = None
    """A stricter grammar than `grammar`, in llguidance's dialect of Lark, which can count; rule `start`. For decoders
    known to read it."""


class Mended(NamedTuple):
    """A completion that was repaired, or is as it was."""

    completion: str
    covered: float = 1.0
    """The share in [0, 1] of the text's words that the completion itself accounts for. The repair added the others."""


class Problem(Protocol):
    """Labels as text, as units with classes, and as statistics.

    A *unit* is what a student classifies: the whole text for classification; for slots the request's intent (unit 0)
    and each word (units 1 ..); for constituency three kinds of units, of words and of the gaps between them; free text
    has none. Every unit has one of `classes`; probabilities are `(units, classes)`.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes. Probabilities of different artifacts are matched by name, never by position."""
        ...

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """The gold label of a raw data row, or None if the row has none.

        Raises DataError with one sentence (without file and line, which the reader adds) if the label is outside the
        schema or does not fit the text.
        """
        ...

    def render(self, text: str, label: Label) -> str:
        """The label as teachers write it and people read it."""
        ...

    @property
    def instruction(self) -> str:
        """The default instruction for a teacher, with {schema} as a placeholder for `schema`."""
        ...

    @property
    def schema(self) -> str:
        """The possible labels, as shown to a teacher."""
        ...

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """The label in a teacher's completion for `text`. Never raises."""
        ...

    def mend(self, text: str, completion: str) -> Mended:
        """Repairs a completion that `parse` rejects; unchanged if it cannot be. Never raises."""
        ...

    def uncut(self, completion: str) -> str:
        """The part of a completion that still says what it would if it had not been cut at its token limit."""
        ...

    def constraint(self, text: str) -> Constraint | None:
        """What a teacher's constrained decoder may write for `text`; None: anything."""
        ...

    def grammar(self, text: str) -> str | None:
        """A grammar for a student's decoder: derives the labels of `text` as `render` writes them, and nothing that
        `parse` rejects; None: anything.

        Its rules are in llguidance's dialect of Lark, which can count, and derive `label`.
        """
        ...

    def words(self, text: str) -> list[str]:
        """The text split for tokenization: into words for tagging, else the whole text."""
        ...

    def sites(self, num_words: int) -> NDArray[np.int64]:
        """The word at which each unit is read, `(units,)`: 1 is the first word, 0 the special token before it."""
        ...

    def targets(self, text: str, label: Label) -> list[int]:
        """The class index of each unit, in the order of `classes`."""
        ...

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        """Which classes each unit may take, `(units, classes)`."""
        ...

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """The most probable legal label by `(units, classes)` probabilities, and its confidence in [0, 1]: the
        geometric mean over units of the chosen class's probability."""
        ...

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        """Whether a prediction is entirely right. Gold labels may contain more than can be predicted, so `==` is not
        enough."""
        ...

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """A row's contribution to the sums that the metric is computed from, `(d,)`. A `predicted` of None counts as
        wrong."""
        ...

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """The metric's value in [0, 1] (kappa and correlations: [-1, 1]; `ERRORS`: 0 or more, in the unit of the
        labels), from summed statistics: `(..., d)` -> `(...)`."""
        ...

    def parts(self, label: Label) -> list[str]:
        """Names of the label's parts for error tables: the class; for slots the intent and each span with its words."""
        ...


@runtime_checkable
class Scale(Protocol):
    """What a problem of numbers has besides: its labels lie on a scale, also between two classes."""

    def spread(self, label: Label) -> Floats:
        """The distribution over the classes that a label stands for, `(1, classes)`, summing to 1."""
        ...

    def merge(self, labels: Sequence[Label], weights: Sequence[float]) -> tuple[Label, float]:
        """What several labels of one row come to, and the confidence in [0, 1]. There is at least one label."""
        ...


def spread(problem: Problem, text: str, label: Label) -> Floats:
    """The probabilities that a hard label stands for, `(units, classes)`: one class for each unit, but on a scale."""
    if isinstance(problem, Scale):
        return problem.spread(label)
    return np.eye(len(problem.classes))[problem.targets(text, label)]


def is_put_right(problem: Problem, text: str, label: Label, probabilities: Floats) -> bool:
    """Whether `label`, decided on `(units, classes)` probabilities, differs from the most probable class of each unit:
    these may not form a legal label together (a slot that starts with I-, a tree that skips a level). A number on a
    scale is the mean of its classes, and never put right."""
    if isinstance(problem, Scale):
        return False
    alone = np.where(problem.allowed(len(probabilities)), probabilities, -1.0).argmax(axis=1)
    return not np.array_equal(problem.targets(text, label), alone)


def gbnf_text(text: str) -> str:
    """The text as a GBNF string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'


def lark_text(text: str) -> str:
    """The text as a Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def lark_rules(rules: Mapping[str, Sequence[str]]) -> str:
    """A Lark grammar, from the alternatives of each rule."""
    return "\n".join(f"{name}: {' | '.join(alternatives)}" for name, alternatives in rules.items())


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error message: all of them, or the first `most` and the total number."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} ... ({len(names)} in all)"


def ratio(numerator: Floats, denominator: Floats, empty: float = 0.0) -> Floats:
    """`numerator / denominator` elementwise, and `empty` where the denominator is not positive."""
    result = np.full(np.shape(denominator), empty)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result
