"""A registered student as MLflow's `python_function`: what `mlflow.pyfunc.load_model` and `mlflow models serve` use."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retort.problems.chat import Chat
from retort.serving.addresses import find_student
from retort.serving.answers import answer
from retort.serving.student import LoadedStudent, load_student
from retort.serving.texts import BadRow, Fields, checked
from retort.tracking.mlflow_model import POINTER

if TYPE_CHECKING:
    import pandas as pd


class MlflowStudent:
    """Answers a table of texts with a table of predictions."""

    def __init__(self, student: LoadedStudent, columns: tuple[str, ...]) -> None:
        self._student = student
        several = columns if len(columns) > 1 else ()
        self._fields = Fields(columns[0], "id", several, are_conversations=isinstance(student.problem, Chat))

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """One row per text, in order: label, confidence, and for slots intent and slots, as `retort predict` gives.

        Raises MlflowException (which MLflow's server answers as a bad request) for a text that cannot be labeled.
        """
        import pandas as pd

        texts = [self._text(at, row) for at, row in enumerate(model_input.to_dict("records"))]
        predictions = zip(texts, self._student.label(texts), strict=True)
        return pd.DataFrame([answer(self._student.problem, text, one) for text, one in predictions])

    def _text(self, at: int, row: dict[Any, Any]) -> str:
        from mlflow.exceptions import MlflowException

        read = checked(f"row {at}", row, self._fields)
        if isinstance(read, BadRow):
            raise MlflowException.invalid_parameter_value(f"{read.place}: {read.detail}")
        if told := self._student.fault(read.text):
            raise MlflowException.invalid_parameter_value(f"row {at} {told}")
        return read.text


def _load_pyfunc(path: str) -> MlflowStudent:
    """Called by MLflow with the model's folder."""
    pointer = json.loads((Path(path) / POINTER).read_text(encoding="utf-8"))
    address = pointer["student"]
    copied = Path(path) / address
    found = find_student(str(copied) if "://" not in address and copied.is_dir() else address)
    return MlflowStudent(load_student(found), tuple(pointer["columns"]))
