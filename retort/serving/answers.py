"""Predictions in their output form: a JSON object, or a row of Parquet.

`label` is what a teacher would write: the class, a JSON list of classes, a number, or the bracketed parse for slots and
entities. Lists, slots and entities are also given in parsed form, and a regression's number with all its digits.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from retort.problems import Problem
from retort.problems.entities import Entities
from retort.problems.multi_label import PRESENT, MultiLabel
from retort.problems.regression import Regression
from retort.problems.slots import Slots, decode, spans
from retort.problems.words import words_of

if TYPE_CHECKING:
    from retort.students.base import Prediction

PredictionRecord = dict[str, Any]
"""One prediction as `answer` returns it."""

DIGITS = 6
"""Decimal places; a float32 is no more precise."""
_SLOT = pa.struct([("name", pa.string()), ("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])


def answer(problem: Problem, text: str, prediction: "Prediction", *, probabilities: bool = False) -> PredictionRecord:
    """Return {label, confidence}, for multi-label also {labels}, for slots {intent, slots}, for entities {entities},
    for regression {number}.

    A slot's `start` (inclusive) and `end` (exclusive) count words from 0. With `probabilities`, the record also has the
    probability of each class, or of each intent for slots; they sum to 1, except for multi-label.
    """
    result: PredictionRecord = {
        "label": problem.render(text, prediction.label),
        "confidence": round(float(prediction.confidence), DIGITS),
    }
    if isinstance(problem, MultiLabel):
        result["labels"] = problem.parts(prediction.label)
    if isinstance(problem, Regression):
        result["number"] = float(prediction.label)
    if isinstance(problem, Slots):
        intent, tags = decode(prediction.label)
        words = words_of(text)
        if not isinstance(problem, Entities):
            result["intent"] = intent
        result["entities" if isinstance(problem, Entities) else "slots"] = [
            {"name": name, "text": " ".join(words[start:end]), "start": start, "end": end}
            for name, start, end in spans(tags)
        ]
    if probabilities:
        result["probabilities"] = _by_class(problem, prediction)
    return result


def answer_schema(problem: Problem, *, probabilities: bool) -> pa.Schema:
    """The Parquet schema of prediction records that start with an `id`."""
    columns: list[tuple[str, Any]] = [("id", pa.string()), ("label", pa.string()), ("confidence", pa.float32())]
    match problem:
        case MultiLabel():
            columns.append(("labels", pa.list_(pa.string())))
        case Entities():
            columns.append(("entities", pa.list_(_SLOT)))
        case Slots():
            columns += [("intent", pa.string()), ("slots", pa.list_(_SLOT))]
        case Regression():
            columns.append(("number", pa.float64()))
    if probabilities:
        columns.append(("probabilities", pa.struct([(name, pa.float32()) for name in _names(problem)])))
    return pa.schema(columns)


def _by_class(problem: Problem, prediction: "Prediction") -> dict[str, float]:
    """The probabilities of unit 0: the whole text, or for slots the intent, independently of the words' tags; for
    multi-label, that of each class to be there."""
    if problem.sigmoids:
        shares = prediction.probabilities[:, PRESENT].astype(np.float64).round(DIGITS)
        return dict(zip(problem.sigmoids, shares.tolist(), strict=True))
    allowed = problem.allowed(len(prediction.probabilities))[0]
    row = prediction.probabilities[0][allowed].astype(np.float64)
    shares = (row / max(row.sum(), 1e-12)).round(DIGITS)
    return dict(zip(_names(problem), shares.tolist(), strict=True))


def _names(problem: Problem) -> list[str]:
    if problem.sigmoids:
        return list(problem.sigmoids)
    allowed = problem.allowed(1)[0]
    return [name.removeprefix("IN:") if isinstance(problem, Slots) else name
            for name, legal in zip(problem.classes, allowed, strict=True) if legal]  # fmt: skip
