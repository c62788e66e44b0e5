import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from retort.errors import DataError
from retort.students.tiny.bags import EncodedRows
from retort.students.tiny.export import export
from retort.students.tiny.network import predict
from retort.students.tiny.scorer import Scorer, measure
from retort.students.tiny.shape import Setting, TinyRows, TinyShape, TinyTraining
from retort.students.tiny.training import train_students
from retort.students.tiny.vocabulary import Vocabulary

CLASSES = ("wrong", "right")
SCORER = Path(__file__).parents[2] / "examples" / "scorer.py"
ODD_ROWS = [["", ""], ["The WATER", ""], ["Überraschung! 水", "straße_x"], ["it is " * 200, "water " * 90]]


@pytest.fixture(scope="module")
def student(lesson):
    return lesson.train(Setting(0))[0]


@pytest.fixture(scope="module")
def folder(lesson, student, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    export(place, student.weights, lesson.vocabulary, CLASSES, "# A student\n")
    return place


def test_onnx_gives_what_torch_gives_however_rows_are_put_together(lesson, student, folder):
    rows = [*lesson.dev_fields * 3, *ODD_ROWS]  # more than a batch
    expected = np.concatenate(list(predict(student.weights, EncodedRows(rows, lesson.vocabulary))))
    scorer = Scorer(folder)
    np.testing.assert_allclose(scorer.probabilities(rows), expected, atol=1e-5)
    alone = np.concatenate([scorer.probabilities([row]) for row in rows])
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    assert expected[:, 0].std() > 0.1, "all rows have the same answer, so nothing was compared"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (("text",), {"overlap": False}),
        (("text",), {"pooling": "mean"}),
        (("reference", "answer"), {"overlap": False}),
        (("reference", "answer"), {"pooling": "mean"}),
        (("reference", "answer"), {"overlap": False, "pooling": "mean"}),
    ],
)
def test_onnx_of_other_shapes(lesson, fields, options, tmp_path):
    shape = TinyShape(fields=fields, **options)
    rows = [row[-len(fields) :] for row in lesson.fields]
    vocabulary = Vocabulary.fit(rows, shape)
    data = TinyRows(EncodedRows(rows, vocabulary), lesson.data.gold)
    (one,) = train_students(data, data, [Setting(0)], vocabulary, shape, TinyTraining(epochs=2), num_classes=2)
    export(tmp_path, one.weights, vocabulary, CLASSES, "")
    expected = np.concatenate(list(predict(one.weights, data.texts)))
    np.testing.assert_allclose(Scorer(tmp_path).probabilities(rows), expected, atol=1e-5)


def test_the_card_says_what_the_folder_holds(folder, student):
    card = (folder / "README.md").read_text()
    count = sum(array.size for array in student.weights.values())
    assert card.startswith("# A student\n")
    assert f"{count:,} parameters, embeddings included" in card
    assert "reference, answer" in card
    assert {file.name for file in folder.iterdir()} == {"README.md", "model.onnx", "vocabulary.json"}


def test_the_graph_is_plain_and_carries_every_weight(folder, student):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("word_ids", "tensor(int64)"),
        ("field_ids", "tensor(int64)"),
    ]
    kept = 4 * sum(array.size for array in student.weights.values())
    assert kept < (folder / "model.onnx").stat().st_size < kept + 8192


def test_no_rows_give_no_probabilities(folder):
    assert Scorer(folder).probabilities([]).shape == (0, 2)


def test_a_folder_that_holds_no_student_is_refused(tmp_path):
    with pytest.raises(DataError, match="no exported tiny student"):
        Scorer(tmp_path)


def test_speed_is_that_of_one_row_and_of_full_batches():
    """A scorer that takes 4 ms for any input is measured as such; a busy machine only makes it slower."""
    asked = []

    def score(rows):
        asked.append(len(rows))
        time.sleep(0.004)

    speed = measure(score, [["a"], ["b"], ["c"]])
    assert speed.latency_ms >= 4
    assert 0 < speed.rows_per_second <= 256 / 0.004
    assert set(asked) == {1, 256}


def test_the_scorer_is_about_twenty_lines_and_imports_two_packages():
    lines = [line for line in SCORER.read_text().splitlines() if line.strip()]
    imported = {line.split()[1] for line in lines if line.startswith("import ")}
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}
    code = [line for line in lines if not line.startswith(("import ", '"""'))]
    assert len(code) <= 20


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with onnxruntime and numpy, and nothing that these do not bring themselves."""
    place = tmp_path_factory.mktemp("bare")
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    python = place / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=600)
    wanted = [f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"]
    command = [uv, "pip", "install", "--quiet", "--python", str(python), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"the package index gave no {' and '.join(wanted)}: {done.stderr}"
    return python


@pytest.mark.slow
def test_the_scorer_runs_where_nothing_else_is_installed(lesson, student, folder, bare_python, tmp_path):
    rows = [*lesson.dev_fields, *ODD_ROWS]
    names = lesson.vocabulary.fields
    lines = [json.dumps({"id": place, **dict(zip(names, row, strict=True))}) for place, row in enumerate(rows)]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    missing = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ['torch', 'retort', 'transformers'])))"
    subprocess.run([str(bare_python), "-I", "-c", missing], check=True, timeout=600)
    command = [str(bare_python), "-I", str(SCORER), str(folder), str(tmp_path / "answers.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in done.stdout.splitlines()]
    expected = np.concatenate(list(predict(student.weights, EncodedRows(rows, lesson.vocabulary))))
    assert [row["id"] for row in scored] == list(range(len(rows)))
    found = np.array([[row["probabilities"][name] for name in CLASSES] for row in scored])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [row["label"] for row in scored] == [CLASSES[best] for best in expected.argmax(1)]
