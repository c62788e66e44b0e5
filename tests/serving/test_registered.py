"""A MODEL that is named by the registry, with a real MLflow database."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import ConfigError
from retort.serving.addresses import TRACKING_VARIABLE, find_student

Trained = Any


@pytest.fixture(scope="module")
def registry(classes_student: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 1 has an artifact address relative to another folder, 2 is the champion, 3's artifact is gone."""
    from retort.tracking import mlflow_runs as runs
    from retort.tracking.registry import ARTIFACT, CHAMPION

    uri, (address, key) = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db", classes_student.student_address
    relative, gone = f"elsewhere/students/{key[:2]}/{key}", f"/nowhere/students/{key[:2]}/{key}"
    with runs.connected(uri) as client:
        for artifact, source in ((relative, address), (address, "mlflow-artifacts:/1/model"), (gone, gone)):
            runs.register(client, "films", key, source, "", {ARTIFACT: artifact})
        client.set_registered_model_alias("films", CHAMPION, "2")
    return uri


@pytest.mark.parametrize(("model", "version"), [("models:/films/1", "1"), ("models:/films@champion", "2")])
def test_a_version_is_its_artifact(
    model: str, version: str, registry: str, classes_student: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACKING_VARIABLE, registry)
    found = find_student(model)
    assert found.manifest.key == classes_student.student.key
    assert (found.name.name, found.name.version, found.name.key) == ("films", version, classes_student.student.key)


def test_predictions_name_the_version(
    registry: str, classes_student: Trained, command: Callable[..., tuple[int, str, str]]
) -> None:
    rows = classes_student.test_file
    code, out, err = command("predict", "models:/films@champion", rows, "--tracking", registry)
    assert code == 0, err
    assert len(out.splitlines()) == 20
    assert f"by films 2 ({classes_student.student.key[:12]})" in err


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("models:/films/3", "version 3, whose artifact '/nowhere/students/"),
        ("models:/films/4", "names no registered student"),
        ("films@nobody", "names no registered student"),
    ],
)
def test_what_is_not_there_is_told(model: str, sentence: str, registry: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        find_student(model, registry)


def test_an_address_may_be_relative_or_the_folder_itself(
    classes_student: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, key = classes_student.student_address
    root = Path(address).parents[2]
    monkeypatch.chdir(root)
    assert find_student(os.path.relpath(address)).manifest.key == key
    monkeypatch.chdir(address)
    assert find_student(".").manifest.key == key
