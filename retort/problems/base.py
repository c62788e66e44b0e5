"""The interface of problems. Only a problem looks inside a label."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, Metric
from retort.errors import ConfigError, DataError
from retort.records.base import Label, ParseFailure

Floats = NDArray[np.float64]

_HALF_PAIR = re.compile("[\ud800-\udfff]")

LARK_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Begins a grammar in llguidance's dialect of Lark. Without it, the library forces its own tokenization wherever only
one continuation is possible, and takes twice as long for a token."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a teacher's constrained decoder may write for one text: one of `choice`, what `grammar` derives, JSON that
    satisfies `json_schema`, or what `regex` matches."""

    choice: tuple[str, ...] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A grammar in GBNF (as xgrammar and llama.cpp read it), root rule `root`."""
    lark: str | None = None
    """A stricter grammar than `grammar`, in llguidance's dialect of Lark, which can count; rule `start`. For decoders
    known to read it."""
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    """A regular expression for the whole text, which llguidance can read."""


class Mended(NamedTuple):
    """A completion that was repaired, or is as it was."""

    completion: str
    covered: float = 1.0
    """The share in [0, 1] of the text's words that the completion itself accounts for. The repair added the others."""


class Problem(Protocol):
    """Labels as text, as units with classes, and as statistics.

    A *unit* is what a student classifies: the whole text for classification; for multi-label each class, which is there
    or not; for slots the request's intent (unit 0) and each word (units 1 ..); for entities each word; for constituency
    three kinds of units, of words and of the gaps between them; free text has none. Every unit has one of `classes`;
    probabilities are `(units, classes)`.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes. Probabilities of different artifacts are matched by name, never by position."""
        ...

    @property
    def sigmoids(self) -> tuple[str, ...]:
        """Names of the units where each is decided by itself, by one output of an encoder's head; `classes` are then no
        and yes. Empty for all other problems, whose heads have an output for each of `classes`."""
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
        """Names of the label's parts for error tables: the class or classes; for slots the intent and each span with
        its words."""
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


@runtime_checkable
class HasCells(Protocol):
    """What a problem has besides of which some metrics are computed from a confusion matrix: a row's `statistics` are
    then 1 in one cell and 0 in all others."""

    @property
    def cell_metrics(self) -> tuple[Metric, ...]: ...

    @property
    def num_cells(self) -> int: ...

    def cell(self, gold: Label, predicted: Label | None) -> int:
        """The place of the 1, in [0, num_cells)."""
        ...


def is_scale(problem: Problem) -> TypeGuard[Scale]:
    """`isinstance(problem, Scale)`, which is too slow to ask for each row."""
    return _is_scale(type(problem))


@cache
def _is_scale(kind: type) -> bool:
    return issubclass(kind, Scale)


def spread(problem: Problem, text: str, label: Label) -> Floats:
    """The probabilities that a hard label stands for, `(units, classes)`: one class for each unit, but on a scale."""
    if is_scale(problem):
        return problem.spread(label)
    return np.eye(len(problem.classes))[problem.targets(text, label)]


def is_missing(value: object) -> bool:
    """Whether it is null or NaN, which is how pandas writes null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def gold_text(row: Mapping[str, Any], column: str) -> str:
    """A column's value as text without outer white space; empty if it is missing, null or NaN.

    Raises DataError for a list, an object, an infinite number, bytes that are not UTF-8, or half of a surrogate pair.
    """
    value = row.get(column)
    if isinstance(value, list | tuple | dict | set) or (isinstance(value, float) and math.isinf(value)):
        raise DataError(f"'{column}' is {value!r:.60}, where a text or a number is needed")
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            raise DataError(f"'{column}' is not UTF-8") from None
    text = "" if is_missing(value) else str(value).strip()
    if _HALF_PAIR.search(text):
        raise DataError(f"'{column}' holds half of a surrogate pair ({text!a:.60})")
    return text


def row_name(row: Mapping[str, Any], number: int) -> str:
    """Where a labeled row is, if it says so; otherwise its number, counted from 1."""
    return str(getattr(row, "place", f"labeled row {number}"))


def is_put_right(problem: Problem, text: str, label: Label, probabilities: Floats) -> bool:
    """Whether `label`, decided on `(units, classes)` probabilities, differs from the most probable class of each unit:
    these may not form a legal label together (a slot that starts with I-, a tree that skips a level). A number on a
    scale is the mean of its classes, and never put right."""
    if is_scale(problem):
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


def check_apart(field: str, names: Iterable[str], key: Callable[[str], str], difference: str) -> None:
    """Raises ConfigError naming the first two of `names` that have the same `key`: they must differ in more than
    `difference`."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(key(name), name)
        if other != name:
            raise ConfigError(f"{field}: '{other}' and '{name}' must differ in more than {difference}")


def looks(name: str) -> str:
    """The name as one sees it: in one of the ways in which Unicode writes it, with single spaces inside."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def needs_quotes(names: Sequence[str]) -> bool:
    """Whether a name would not be told from two in a list, or from another with spaces around it."""
    return any(set(name) & set(',"') or name != name.strip() or len(name.splitlines()) > 1 for name in names)


def quoted(name: str) -> str:
    """The name in double quotes, as JSON writes it."""
    return json.dumps(name, ensure_ascii=False)


def unspaced(names: Sequence[str]) -> str:
    """Names without white space for a teacher, separated by commas, or by spaces if one of them holds a comma."""
    return (" " if any("," in name for name in names) else ", ").join(names)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error message: all of them, or the first `most` and the total number."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} ... ({len(names)} in all)"


def ratio(numerator: Floats, denominator: Floats, empty: float = 0.0) -> Floats:
    """`numerator / denominator` elementwise, and `empty` where the denominator is not positive."""
    result = np.full(np.shape(denominator), empty)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result
