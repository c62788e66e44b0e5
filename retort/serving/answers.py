"""A prediction as people and machines read it: JSON, or a row of Parquet.

`label` is what a teacher would write: the class, or for slots the bracketed parse. Slots come parsed beside it too,
since a word of the text may be a bracket itself.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from retort.problems import Problem
from retort.problems.slots import Slots, decode, spans

if TYPE_CHECKING:
    from retort.students.base import Prediction

Answer = dict[str, Any]

DIGITS = 6
"""After the point: a float32 is no more exact."""
_SLOT = pa.struct([("name", pa.string()), ("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])


def answer(problem: Problem, text: str, prediction: "Prediction", *, probabilities: bool = False) -> Answer:
    """{label, confidence}; for slots {intent, slots} too, a slot's `start` and `end` counting words from 0, end
    excluded; with `probabilities`, those of each class (for slots: of each intent), which sum to 1."""
    result: Answer = {
        "label": problem.render(text, prediction.label),
        "confidence": round(float(prediction.confidence), DIGITS),
    }
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
    """Of Parquet with an `id` before each answer."""
    columns: list[tuple[str, Any]] = [("id", pa.string()), ("label", pa.string()), ("confidence", pa.float32())]
    if isinstance(problem, Slots):
        columns += [("intent", pa.string()), ("slots", pa.list_(_SLOT))]
    if probabilities:
        columns.append(("probabilities", pa.struct([(name, pa.float32()) for name in _names(problem)])))
    return pa.schema(columns)


def _by_class(problem: Problem, prediction: "Prediction") -> dict[str, float]:
    """Of unit 0, which is the whole text, or the request's intent by itself, whatever the words say."""
    allowed = problem.allowed(len(prediction.probabilities))[0]
    row = prediction.probabilities[0][allowed].astype(np.float64)
    shares = (row / max(row.sum(), 1e-12)).round(DIGITS)
    return dict(zip(_names(problem), shares.tolist(), strict=True))


def _names(problem: Problem) -> list[str]:
    allowed = problem.allowed(1)[0]
    return [name.removeprefix("IN:") if isinstance(problem, Slots) else name
            for name, legal in zip(problem.classes, allowed, strict=True) if legal]  # fmt: skip
