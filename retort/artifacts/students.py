"""A trained student."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.artifacts.base import Artifact

MODEL = "model"
"""Weights, config and tokenizer, as transformers reads them."""
ONNX = "onnx"
"""A tiny student's folder for deployment: it needs onnxruntime and numpy, but not Retort."""
HISTORY = "history.json"


@dataclass(frozen=True)
class TrainedStudent(Artifact):
    kind = "students"

    @property
    def model(self) -> Path:
        """The folder that `load_student` reads."""
        return next((self.folder / name for name in (MODEL, ONNX) if (self.folder / name).is_dir()), self.folder)

    @property
    def weights_bytes(self) -> int:
        files = [*self.model.glob("*.safetensors"), *self.model.glob("*.onnx")]
        return sum(file.stat().st_size for file in files)

    def history(self) -> dict[str, Any]:
        """The fields of `retort.students.base.History`."""
        history: dict[str, Any] = json.loads((self.folder / HISTORY).read_text(encoding="utf-8"))
        return history
