"""`retort export`: the folder and the graphs give the labels that the student gives."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer

from hub_server import TOKEN, Hub, hub
from retort.models.device import Device
from retort.serving.addresses import find_student
from retort.serving.student import load_student
from retort.students.classifier import Classifier
from retort.students.onnx_encoder import with_onnx

Trained = Any
Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("which", ["slots_student", "classes_student"])
def test_graphs_label_as_the_student_does(
    which: str, command: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    student = request.getfixturevalue(which)
    folder = tmp_path / "out"
    options = ("--onnx", "--int8", "--check", student.test_file)
    code, out, err = command("export", student.student_address[0], str(folder), *options)
    assert code == 0, err
    assert "model.onnx:" in out
    assert "100.00% of 20 labels as the student's" in out
    loaded = load_student(find_student(student.student_address[0]), "cpu")
    assert isinstance(loaded.student, Classifier)
    graph = Classifier(with_onnx(loaded.student.encoder, folder / "model.onnx"), loaded.problem)
    texts = [row["text"] for row in student.evaluated()]
    device = Device("cpu", "fp32", 1)
    for ours, theirs in zip(
        loaded.student.predict(texts, device=device, total=len(texts)),
        graph.predict(texts, device=device, total=len(texts)),
        strict=True,
    ):
        assert ours.label == theirs.label
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
    assert (folder / "model.int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size


def test_the_folder_is_one_of_transformers_with_a_card(
    slots_student: Trained, command: Command, tmp_path: Path
) -> None:
    code, _, err = command("export", slots_student.student_address[0], str(tmp_path / "out"))
    assert code == 0, err
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(["play"])["input_ids"]
    assert len(model.config.id2label) > 2
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: token-classification\n")
    assert slots_student.student.key[:12] in card
    assert "final/student" in card, "its lineage"
    assert "## Labels\n- " in card
    data = (tmp_path / "out/DATA.md").read_text()
    assert data.startswith("---\nannotations_creators: [found]\nsize_categories: [n<1K]\n")
    assert "| labeled | 12 | 12 | none | " in data
    assert "## What no manifest knows" in data
    code, _, err = command("export", slots_student.student_address[0], str(tmp_path / "out"))
    assert (code, "holds something already" in err) == (2, True)
    code, _, err = command("export", slots_student.student_address[0], str(tmp_path / "other"), "--int8")
    assert (code, "go with --onnx" in err) == (2, True)


@pytest.fixture
def a_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as opened:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", opened.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # The other way of uploading is compiled code that talks to a service of the vendor's.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield opened


def test_a_push_makes_a_private_repository_with_the_folders_files(
    classes_student: Trained, command: Command, tmp_path: Path, a_hub: Hub
) -> None:
    address = classes_student.student_address[0]
    for folder in ("first", "again"):
        options = ("--push", "team/films", "--onnx")
        code, out, err = command("export", address, str(tmp_path / folder), *options)
        assert code == 0, err
        assert out.splitlines()[-1] == f"pushed: {a_hub.url}/team/films/commit/{'c' * 40}"
    assert a_hub.repositories["team/films"]["visibility"] == "private"
    written = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert {"README.md", "DATA.md", "model.safetensors", "model.onnx", "config.json"} <= set(written)
    assert a_hub.files["team/films"] == written


@pytest.mark.parametrize(
    ("repository", "token", "code", "sentence"),
    [
        ("films", TOKEN, 2, "no name of a repository; give ORGANIZATION/NAME"),
        ("team/films/more", TOKEN, 2, "no name of a repository"),
        ("../films", TOKEN, 2, "no name of a repository"),
        ("team/films..more--", TOKEN, 2, "--push team/films..more--: "),
        ("others/films", TOKEN, 2, "the hub refuses this login (HTTP status 403); HF_TOKEN must hold"),
        ("team/films", "hf_wrong", 2, "the hub refuses this login (HTTP status 403)"),
    ],
)
def test_a_push_that_cannot_be_is_told_before_anything_is_written(
    classes_student: Trained, command: Command, tmp_path: Path, a_hub: Hub, monkeypatch: pytest.MonkeyPatch,
    repository: str, token: str, code: int, sentence: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    address = classes_student.student_address[0]
    given, _, err = command("export", address, str(tmp_path / "out"), "--push", repository)
    assert (given, len(err.splitlines())) == (code, 1), err
    assert sentence in err
    assert token not in err
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_answer_is_told(
    classes_student: Trained, command: Command, tmp_path: Path, a_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = classes_student.student_address[0]
    for name, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setattr(f"huggingface_hub.constants.{name}", value)
            code, _, err = command("export", address, str(tmp_path / "out"), "--push", "team/films")
        assert code == 1
        assert err.startswith("error: --push team/films: the hub cannot be reached (")
    assert not (tmp_path / "out").exists()
