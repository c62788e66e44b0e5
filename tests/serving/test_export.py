"""`retort export`: the folder and the graphs give the labels that the student gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer

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
    code, _, err = command("export", slots_student.student_address[0], str(tmp_path / "out"))
    assert (code, "holds something already" in err) == (2, True)
    code, _, err = command("export", slots_student.student_address[0], str(tmp_path / "other"), "--int8")
    assert (code, "go with --onnx" in err) == (2, True)
