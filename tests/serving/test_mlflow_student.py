"""A registered student answers through MLflow as it does through Retort."""

import json
from pathlib import Path
from typing import Any

import pytest

from retort.serving.addresses import find_student
from retort.serving.answers import answer
from retort.serving.student import load_student
from retort.tracking import mlflow_runs as runs
from retort.tracking.mlflow_model import POINTER, write_model

Trained = Any
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # importing mlflow


def expected(student: Trained) -> tuple[list[str], list[dict[str, Any]]]:
    """The test rows' texts, and Retort's answers to them."""
    loaded = load_student(find_student(student.student_address[0]), "cpu")
    texts = [row["text"] for row in student.evaluated()]
    return texts, [answer(loaded.problem, text, one) for text, one in zip(texts, loaded.label(texts), strict=True)]


@pytest.fixture(scope="module")
def registered(slots_student: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a registry whose model `requests` has the student as its champion."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    address, key = slots_student.student_address
    with runs.connected(uri) as client:
        experiment = runs.open_experiment(client, "requests", uri)
        run_id = runs.open_run(client, experiment, key, "night", runs.now_ms(), {})
        source = runs.log_model(client, run_id, address, ["text"], uri)
        version = runs.register(client, "requests", key, source, run_id, {"retort.artifact": address})
        runs.set_alias(client, "requests", "champion", version)
    return uri


def test_the_champion_loads_as_a_python_function(registered: str, slots_student: Trained) -> None:
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(registered)
    try:
        model = mlflow.pyfunc.load_model("models:/requests@champion")
    finally:
        mlflow.set_tracking_uri(None)
    texts, answers = expected(slots_student)
    assert model.predict(pd.DataFrame({"text": texts})).to_dict("records") == answers
    with pytest.raises(mlflow.exceptions.MlflowException, match="row 1: 'text' is empty"):
        model.predict(pd.DataFrame({"text": ["play it", " "]}))
    with pytest.raises(mlflow.exceptions.MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"words": ["play it"]}))


def test_a_copy_needs_the_store_no_more(slots_student: Trained, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    write_model(tmp_path, slots_student.student_address[0], ["text"], copy=True)
    assert not Path(json.loads((tmp_path / POINTER).read_text())["student"]).is_absolute()
    texts, answers = expected(slots_student)
    assert mlflow.pyfunc.load_model(str(tmp_path)).predict(pd.DataFrame({"text": texts})).to_dict("records") == answers
