"""Predictions in their output form: a JSON object, or a row of Parquet.

`label` is what a teacher would write: the class, or the bracketed parse for slots. Slots are also given in parsed form,
since a word of the text may itself be a bracket, and a regression's number as such, with all its digits.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from retort.problems import Problem
from retort.problems.regression import Regression
from retort.problems.slots import Slots, decode, spans

if TYPE_CHECKING:
    from retort.students.base import Prediction

PredictionRecord = dict[str, Any]
"""One prediction as `answer` returns it."""

DIGITS = 6
"""Decimal places; a float32 is no more precise."""
_SLOT = pa.struct([("name", pa.string()), ("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])


def answer(problem: Problem, text: str, prediction: "Prediction", *, probabilities: bool = False) -> PredictionRecord:
    """Return {label, confidence}, for slots also {intent, slots}, and for regression {number}.

    A slot's `start` (inclusive) and `end` (exclusive) count words from 0. With `probabilities`, the record also has the
    probability of each class, or of each intent for slots; they sum to 1.
    """
    result: PredictionRecord = {
        "label": problem.render(text, prediction.label),
        "confidence": round(float(prediction.confidence), DIGITS),
    }
    if isinstance(problem, Regression):
        result["number"] = float(prediction.label)
    if isinstance(problem, Slots):
        intent, tags = decode(prediction.label)
        words = text.split()
        result["intent"] = intent
        result["slots"] = [
            {"name": name, "text": " ".join(words[start:end]), "start": start, "end": end}
            for name, start, end in spans(tags)
        ]
    if probabilities:
        result["probabilities"] = _by_class(problem, prediction)
    return result


def answer_schema(problem: Problem, *, probabilities: bool) -> pa.Schema:
    """The Parquet schema of prediction records that start with an `id`."""
    columns: list[tuple[str, Any]] = [("id", pa.string()), ("label", pa.string()), ("confidence", pa.float32())]
    if isinstance(problem, Regression):
        columns.append(("number", pa.float64()))
    if isinstance(problem, Slots):
        columns += [("intent", pa.string()), ("slots", pa.list_(_SLOT))]
    if probabilities:
        columns.append(("probabilities", pa.struct([(name, pa.float32()) for name in _names(problem)])))
    return pa.schema(columns)


def _by_class(problem: Problem, prediction: "Prediction") -> dict[str, float]:
    """The probabilities of unit 0: the whole text, or for slots the intent, independently of the words' tags."""
    allowed = problem.allowed(len(prediction.probabilities))[0]
    row = prediction.probabilities[0][allowed].astype(np.float64)
    shares = (row / max(row.sum(), 1e-12)).round(DIGITS)
    return dict(zip(_names(problem), shares.tolist(), strict=True))


def _names(problem: Problem) -> list[str]:
    allowed = problem.allowed(1)[0]
    return [name.removeprefix("IN:") if isinstance(problem, Slots) else name
            for name, legal in zip(problem.classes, allowed, strict=True) if legal]  # fmt: skip
