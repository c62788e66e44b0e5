"""`retort predict`: the same labels as in the evaluation, for any kind of file, and rows that cannot be labeled."""

import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.io.parquet import read_rows
from retort.problems import problem_for
from retort.problems.slots import decode
from retort.serving import files
from retort.serving.files import windows
from retort.serving.texts import BadRow, Fields, TextRow, read_texts

Command = Callable[..., tuple[int, str, str]]
Trained = Any
FIELDS = Fields("text", "id")


def answers(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_slots_are_labeled_as_in_the_evaluation(command: Command, slots_student: Trained) -> None:
    code, out, err = command("predict", slots_student.student.uri, slots_student.test_file, "--device", "cpu")
    assert code == 0, err
    problem, expected = problem_for(slots_student.config.problem), slots_student.evaluated()
    for answer, row in zip(answers(out), expected, strict=True):
        intent, tags = decode(row["predicted"])
        assert answer["id"] == row["example_id"]
        assert answer["label"] == problem.render(row["text"], row["predicted"])
        assert answer["intent"] == intent
        assert answer["confidence"] == pytest.approx(row["confidence"], abs=1e-5)
        words = row["text"].split()
        for slot in answer["slots"]:
            assert tags[slot["start"] : slot["end"]] == [f"B-{slot['name']}"] + [f"I-{slot['name']}"] * (
                slot["end"] - slot["start"] - 1
            )
            assert slot["text"] == " ".join(words[slot["start"] : slot["end"]])
        assert sum(tag[0] == "B" for tag in tags) == len(answer["slots"])
    assert any(answer["slots"] for answer in answers(out))
    assert f"20 rows labeled, 0 set aside, by {slots_student.student.key[:12]}" in err


def test_classes_are_labeled_as_in_the_evaluation(command: Command, classes_student: Trained, tmp_path: Path) -> None:
    arguments = ["predict", classes_student.student.uri, classes_student.test_file, "--probabilities"]
    code, out, err = command(*arguments)
    assert code == 0, err
    lines = answers(out)
    expected = classes_student.evaluated()
    assert [(line["id"], line["label"]) for line in lines] == [
        (row["example_id"], row["predicted"]) for row in expected
    ]
    for line in lines:
        assert line["probabilities"].keys() == {"down", "up"}
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert line["probabilities"][line["label"]] == pytest.approx(line["confidence"], abs=1e-5)
    for name in ("out.parquet", "out.jsonl"):
        code, out, err = command(*arguments, "--out", tmp_path / name)
        assert (code, out) == (0, ""), err
    assert answers((tmp_path / "out.jsonl").read_text()) == lines
    table = list(read_rows(tmp_path / "out.parquet"))
    assert [row["id"] for row in table] == [line["id"] for line in lines]
    assert [row["probabilities"]["up"] for row in table] == pytest.approx(
        [line["probabilities"]["up"] for line in lines]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.parquet"]


def test_slots_go_to_parquet(command: Command, slots_student: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    arguments = [slots_student.student.uri, slots_student.test_file, "--out", out, "--probabilities"]
    code, _, err = command("predict", *arguments)
    assert code == 0, err
    rows = list(read_rows(out))
    assert [row["id"] for row in rows] == [row["example_id"] for row in slots_student.evaluated()]
    for row in rows:
        assert row["label"].startswith(f"[IN:{row['intent']} ")
        assert all(f"[SL:{slot['name']} {slot['text']} ]" in row["label"] for slot in row["slots"])
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("server", ["s3_moto", "s3_rclone"])
def test_student_and_rows_in_a_bucket(
    server: str,
    request: pytest.FixtureRequest,
    command: Command,
    classes_student: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The endpoint comes from AWS_ENDPOINT_URL; the student is verified and cached."""
    from retort.io.s3 import filesystem

    endpoint_url, bucket = request.getfixturevalue(server)
    system, root = filesystem(endpoint_url), f"{bucket}/served"
    system.put(f"{classes_student.config.store.root}/students", f"{root}/students", recursive=True)
    system.put_file(classes_student.test_file, f"{root}/rows/a.jsonl")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = classes_student.student.key
    code, out, err = command("predict", f"s3://{root}/students/{key[:2]}/{key}", f"s3://{root}/rows")
    assert code == 0, err
    assert [line["label"] for line in answers(out)] == [row["predicted"] for row in classes_student.evaluated()]
    assert (tmp_path / "retort" / "students" / key).is_dir()


ROWS: list[tuple[str, str | None]] = [
    ('{"id": 1, "text": "the film was good"}', None),
    ('{"id": 2, "text": " "}', "empty-text"),
    ('{"id": 3, "body": "no text here"}', "no-text"),
    ('{"id": 4, "text": 5}', "no-text"),
    ('{"id": 5, "text": "cut', "not-json"),
    ("[1]", "not-json"),
    ('{"id": 6, "text": "half \\ud83d"}', "not-unicode"),
    ('{"id": true, "text": "the film"}', "bad-id"),
    ('{"id": 7, "text": "the film", "text": "the book"}', "key-twice"),
    ('{"id": 7, "text": "' + "x " * 60_000 + '"}', "too-long"),
    ('"a text by itself"', None),
    ('{"id": "eight", "text": "ünï was awful"}', None),
]


def test_bad_rows_are_set_aside_and_counted(command: Command, classes_student: Trained, tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl.gz", tmp_path / "out.jsonl"
    lines = [line.encode() for line, _ in ROWS] + [b'{"text": "caf\xe9"}']
    source.write_bytes(gzip.compress(b"\n".join(lines)))
    reasons = [reason for _, reason in ROWS] + ["not-unicode"]
    bad = {number: reason for number, reason in enumerate(reasons, 1) if reason}
    code, _, err = command("predict", classes_student.student.uri, source, "--out", out, "--max-bad", "0.8")
    assert code == 0
    told = [line for line in err.splitlines() if line.startswith(str(source))]
    assert [line.split(": ")[:2] for line in told] == [[f"{source}, line {n}", reason] for n, reason in bad.items()]
    assert "3 rows labeled, 10 set aside" in err
    assert "2 no-text" in err
    assert [answer["id"] for answer in answers(out.read_text())] == ["1", digest_of("a text by itself"), "eight"]

    out.unlink()
    code, _, err = command("predict", classes_student.student.uri, source, "--out", out)
    assert code == 1
    assert err.splitlines()[-1].endswith(f"76.9%, more than --max-bad 10.0%; '{out}' is not written")
    assert list(tmp_path.iterdir()) == [source]


def test_standard_input(command: Command, classes_student: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'{"key": "a", "said": "the film was great"}\n\n{"said": "dull"}\nnot json\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    fields = ["--text", "said", "--id", "key", "--max-bad", "0.5"]
    code, out, err = command("predict", classes_student.student.uri, "-", *fields)
    assert code == 0
    assert [answer["id"] for answer in answers(out)] == ["a", digest_of("dull")]
    assert "line 4: not-json: not JSON" in err


def test_csv_and_parquet_rows(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_bytes('id,text\n1,"two\nlines"\n2\n3,"a "b\n4,\n5,caf\u00e9\n'.encode() + b"6,caf\xe9\n7,last\n")
    rows = list(read_texts(str(table), FIELDS))
    assert [row for row in rows if isinstance(row, TextRow)] == [
        TextRow("1", "two\nlines"),
        TextRow("5", "caf\u00e9"),
        TextRow("7", "last"),
    ]
    assert [(row.place.rpartition(" ")[2], row.reason) for row in rows if isinstance(row, BadRow)] == [
        ("4", "not-csv"),
        ("5", "not-csv"),
        ("6", "no-text"),
        ("8", "not-unicode"),
    ]
    pq.write_table(pa.table({"id": [1, None], "text": ["one", "two"]}), tmp_path / "rows.parquet")
    assert list(read_texts(str(tmp_path / "*.parquet"), FIELDS)) == [
        TextRow("1", "one"),
        TextRow(digest_of("two"), "two"),
    ]
    assert list(read_texts(str(tmp_path), FIELDS))[: len(rows)] == rows


def test_parquet_values_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pa.array([b"one", b"\xff", b"three"], pa.binary()).view(pa.string())
    far = pa.array([2**31 - 1] * 3, pa.date32())
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": texts, "born": far}), path)
    assert list(read_texts(str(path), FIELDS)) == [
        TextRow("1", "one"),
        BadRow(f"{path}, row 2", "not-utf8", "'text' is not UTF-8"),
        TextRow("3", "three"),
    ]
    rows = list(read_texts(str(path), FIELDS._replace(columns=("text",))))
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]


def test_windows_are_bounded_by_rows_and_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOW_ROWS", 3)
    monkeypatch.setattr(files, "WINDOW_CHARACTERS", 10)
    texts = ["a", "b", "c", "d", "e" * 9, "f", "g" * 50, "h"]
    taken = [[row.text[0] for row in window] for window in windows(TextRow("", text) for text in texts)]
    assert taken == [["a", "b", "c"], ["d", "e"], ["f", "g"], ["h"]]


def test_reading_is_never_ahead_of_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an endless source, rows must be read only as they are needed."""
    monkeypatch.setattr(files, "WINDOW_ROWS", 100)
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield TextRow(str(read), "text")

    taken = windows(endless())
    for number in range(1, 4):
        next(taken)
        assert read == 100 * number


def spoiled(tmp_path: Path) -> Any:
    """(arguments after `predict`, part of the error message); STUDENT stands for a valid MODEL."""
    good, lines = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"text": "fine"}\n')
    lines.write_text('{"body": "x"}\n' * 3)
    (tmp_path / "wrong.csv").write_text("id,body\n1,x\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:40])
    (tmp_path / "rows.txt").write_text("x\n")
    missing = "students/ab/" + "ab" * 32
    return [
        ([tmp_path / missing, good], "there is no student's artifact"),
        (["nothing", good], "MODEL 'nothing'"),
        ([f"s4://bucket/{missing}", good], "s4://bucket"),
        (["models:/snips@champion", good], "--tracking or MLFLOW_TRACKING_URI"),
        (["STUDENT", tmp_path / "gone.jsonl"], "no such file"),
        (["STUDENT", lines], f"none of the first 3 row(s) can be labeled; {lines}, line 1: 'text' is missing"),
        (["STUDENT", tmp_path / "wrong.csv"], "no column 'text' for the text (--text); its columns are 'id', 'body'"),
        (["STUDENT", tmp_path / "cut.jsonl.gz"], "cut in the middle"),
        (["STUDENT", tmp_path / "rows.txt"], "the extension says no format"),
        (["STUDENT", good, "--out", tmp_path / "out.txt"], "must end in .jsonl or .parquet"),
        (["STUDENT", good, "--out", tmp_path / "gone" / "out.jsonl"], "is no folder of this machine"),
    ]


@pytest.mark.parametrize("case", range(11))
def test_a_mistake_gets_one_sentence_before_anything_is_loaded(
    case: int, command: Command, classes_student: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("retort.serving.student.load_student", lambda *_: pytest.fail("the student was loaded"))
    arguments, sentence = spoiled(tmp_path)[case]
    given = [classes_student.student.uri if argument == "STUDENT" else argument for argument in arguments]
    code, out, err = command("predict", *given)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_damaged_student_is_named(command: Command, classes_student: Trained, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(Path(classes_student.config.store.root) / "students", tmp_path / "students")
    (weights,) = tmp_path.glob("students/*/*/*/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    key = classes_student.student.key
    code, _, err = command("predict", tmp_path / "students" / key[:2] / key, classes_student.test_file)
    assert code == 1
    assert "file 'model/model.safetensors' has" in err


def test_rows_of_other_formats(tmp_path: Path) -> None:
    files = {
        "a.conll": "#id: 1\n# id: 2\nplay O\nabba B-ARTIST\n\nplay\n\nstop O\n",
        "b.mrg": "(S (N the) (V cat))\n(S (N) (V x))\n",
        "c.csv": "id;text\n3;a, b\n",
        "d.jsonl": '{"id": 4, "text": ["a", "b"]}\n{"id": 5, "text": [1]}\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    read = list(read_texts(str(tmp_path), FIELDS))
    assert [(row.text if isinstance(row, TextRow) else row.reason) for row in read] == [
        "play abba", "wrong-columns", "stop", "the cat", "not-a-tree", "a, b", "a b", "no-text",
    ]  # fmt: skip
    assert [row.row_id for row in read if isinstance(row, TextRow) and len(row.row_id) == 1] == ["2", "3", "4"]
