"""The files of a registered version: MLflow loads them with `mlflow.pyfunc.load_model` and `mlflow models serve`.

They refer to the student's artifact in the store, whose weights are so kept once. Only where the store is a folder of
this machine and MLflow is a server, which others use, do they hold a copy of the artifact.
"""

import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

LOADER = "retort.serving.mlflow_student"
"""The module that MLflow imports to load the student."""
POINTER = "student.json"
_COPY = "store"


def write_model(folder: Path, artifact: str, columns: Sequence[str], *, copy: bool) -> None:
    """Write the model into the existing `folder`.

    Args:
        artifact: The address of the student's artifact, ROOT/students/XX/KEY, absolute.
        columns: The columns of the input that the student reads.
        copy: Copy the artifact, which must be in a local store, instead of referring to it.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    student = artifact
    if copy:
        student = str(Path(_COPY, *Path(artifact).parts[-3:]))
        shutil.copytree(artifact, folder / student)
    (folder / POINTER).write_text(json.dumps({"student": student, "columns": list(columns)}), encoding="utf-8")
    read = Schema([ColSpec("string", name, required=True) for name in columns])
    written = Schema([ColSpec("string", "label"), ColSpec("double", "confidence")])
    model = Model(signature=ModelSignature(inputs=read, outputs=written))
    # As `mlflow.pyfunc.add_to_model` does, whose import warns of something in MLflow itself.
    model.add_flavor("python_function", loader_module=LOADER, python_version=platform.python_version())
    model.save(str(folder / "MLmodel"))
