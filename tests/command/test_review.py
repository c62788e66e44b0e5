"""`retort review`: rows go out to people in each form, and what comes back is gold, an estimate, or set aside."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from retort.commands.review import run as module
from retort.commands.review.answers import Answers, read_answers
from retort.commands.review.files import Answer, answers_in, label_studio_config, written
from retort.commands.review.record import Review, ReviewRow
from retort.config import ColumnsConfig, MckdConfig
from retort.data import read_examples
from retort.data.bad_rows import BadRow
from retort.problems import problem_for
from retort.store.runs import RunRecord, keep_run
from retort.students.base import Prediction
from synthetic_run import PLAY_ARTIST, PLAY_TRACK, TEST, Run, synthetic
from whole_run import whole_run

Command = Callable[..., tuple[int, str, str]]
CLASSES = {"kind": "classification", "labels": ["bad", "good"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = synthetic(tmp_path_factory.mktemp("run"))
    time = "2026-01-01T03:00:00+00:00"
    artifacts = tuple(f"{ref.kind}/{ref.key}" for ref in (*made.distilled.refs(), made.report))
    keep_run(made.store, RunRecord(name="tiny", run_id="r", started_at=time, ended_at=time, artifacts=artifacts))
    return made


@pytest.fixture
def config(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's config in a folder of its own; its student says of every text that it plays a track."""

    def load(found: Any, device: str) -> SimpleNamespace:
        problem = problem_for(run.config.problem)

        def label(texts: Sequence[str]) -> Iterator[Prediction]:
            for text in texts:
                said = problem.parse(text, PLAY_TRACK.format(text.split()[-1]))
                yield Prediction(str(said), 0.5, np.empty((0, 0), dtype=np.float32))

        return SimpleNamespace(problem=problem, label=label)

    monkeypatch.setattr(module, "load_student", load)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(run.config.model_dump(mode="json", exclude_none=True)))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fill(path: Path, labels: dict[str, str], **more: str) -> None:
    rows = rows_of(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": labels.get(row["id"], ""), **more} for row in rows)


def test_disputed_rows_become_gold(config: Path, command: Command) -> None:
    """Teacher, stage 1 and student say three things of p4; of p1 and p7 the students agree against the teacher."""
    code, out, _ = command("review", config, "--rows", "3")
    assert (code, out.splitlines()[0]) == (
        0,
        "review.csv: the 3 rows of 10 that the labelers disagree on most",
    )
    rows = rows_of(Path("review.csv"))
    assert rows[0]["id"] == "p4"
    assert rows[0]["teacher"] == PLAY_TRACK.format("queen")
    assert rows[0]["stage 1"] == "[IN:WEATHER [SL:CITY queen ] ]"
    assert {row["label"] for row in rows} == {""}
    assert not {row["id"] for row in rows} & {"p8", "p9"}  # one label alone disputes nothing

    fill(Path("review.csv"), {"p4": PLAY_ARTIST.format("queen"), rows[1]["id"]: "[IN:SING ]"})
    code, out, _ = command("review", config, "--import", "review.csv", "--by", "ada")
    assert (code, out.splitlines()) == (
        0,
        [
            "1 labels by ada; 1 rows have none",
            "1 answers were set aside (bad-gold 1): review.csv.set-aside.jsonl",
            "gold.jsonl: 1 rows appended; name it in data.labeled",
        ],
    )
    (aside,) = [json.loads(line) for line in Path("review.csv.set-aside.jsonl").read_text().splitlines()]
    assert (aside["reason"], aside["example_id"]) == ("bad-gold", rows[1]["id"])
    assert "SING" in aside["detail"]
    assert "[IN:SING ]" in aside["raw"]
    (gold,) = [json.loads(line) for line in Path("gold.jsonl").read_text().splitlines()]
    assert (gold["id"], gold["text"], gold["review"]["by"]) == ("p4", "play queen", ["ada"])
    assert gold["review"]["at"].startswith("20")

    again = command("review", config, "--import", "review.csv", "--by", "ada", "--json")[1]
    assert (json.loads(again)["appended"], json.loads(again)["known"]) == (0, 1)
    settings = MckdConfig.model_validate(yaml.safe_load(config.read_text()))
    (example,) = read_examples("gold.jsonl", ColumnsConfig(), problem_for(settings.problem), gold="required")
    assert problem_for(settings.problem).render(example.text, str(example.label)) == PLAY_ARTIST.format("queen")


def test_an_estimate_of_the_test_score(config: Path, command: Command) -> None:
    code, out, _ = command("review", config, "--for", "estimate", "--rows", "4", "--out", "test.csv")
    assert (code, out.splitlines()[0]) == (
        0,
        "test.csv: 4 of 4 test rows, drawn where the student is likely to err",
    )
    rows = rows_of(Path("test.csv"))
    assert set(rows[0]) == {"id", "text", "label", "by", "at", "review"}  # what the student says would sway people
    assert {row["id"] for row in rows} == set(TEST)

    fill(Path("test.csv"), {row["id"]: TEST[row["id"]][1] for row in rows[:3]}, by="bo", at="2026-01-02T10:00:00Z")
    code, out, err = command("review", config, "--import", "test.csv")
    assert (code, out) == (2, "")
    assert "only the first 3 of the 4 rows have a label, and an estimate takes at least 10, in the order of" in err
    fill(Path("test.csv"), {name: gold for name, (_, gold) in TEST.items()}, by="bo", at="2026-01-02T10:00:00Z")
    code, out, _ = command("review", config, "--import", "test.csv", "--json")
    told = json.loads(out)
    assert (code, told["gold"], told["used"], told["people"]) == (0, 4, 4, ["bo"])
    assert {score["metric"]: score["value"] for score in told["scores"]}["exact_match"] == 0.5  # t1 and t3 are wrong
    assert not Path("gold.jsonl").exists()


def test_test_rows_of_a_file(config: Path, command: Command) -> None:
    lines = [json.dumps({"id": f"n{at}", "text": f"play number{at}"}) for at in range(30)]
    Path("new.jsonl").write_text("\n".join([*lines, '{"id": "n30"}']) + "\n")
    code, out, _ = command("review", config, "--for", "estimate", "--rows", "12", "--from", "new.jsonl")
    assert code == 0
    assert out.splitlines()[:2] == [
        "review.csv: 12 of 30 test rows, drawn where the student is likely to err",
        "1 rows cannot be used and were left out.",
    ]
    rows = rows_of(Path("review.csv"))
    right = {row["id"]: PLAY_TRACK.format(row["text"].split()[-1]) for row in rows}
    wrong = {row["id"]: PLAY_ARTIST.format(row["text"].split()[-1]) for row in rows[6:]}
    fill(Path("review.csv"), {**right, **wrong})
    code, out, _ = command("review", config, "--import", "review.csv", "--by", "ada", "--gold", "more/test.jsonl")
    assert code == 0
    assert "more/test.jsonl: 12 rows appended; name it in data.labeled" in out
    (line,) = [line for line in out.splitlines() if line.startswith("exact match")]
    assert line.endswith("on 30 test rows, estimated")
    value, low, high = (float(part.strip("[],")) for part in line.split()[2:5])
    assert low < 50 < high
    assert 30 < value < 70


def test_what_cannot_be_asked_for(config: Path, command: Command, run: Run, answers: Any) -> None:
    def refused(*arguments: str | Path) -> str:
        code, out, err = command("review", *arguments)
        assert (code, out) == (2, "")
        return err

    Path("review.csv").write_text("mine")
    assert "--out 'review.csv': exists already" in refused(config)
    assert "--from names test rows" in refused(config, "--from", "x.jsonl", "--out", "a.csv")
    assert "is no folder" in refused(config, "--out", "no/such/a.csv")
    assert "--by and --gold go with --import" in refused(config, "--by", "ada")
    assert "has no finished run" in refused(config, "--set", "name=other", "--out", "a.csv")
    assert "only runs of the recipe mckd" in refused(answers.save(), "--out", "a.csv")
    assert "holds no row with a column 'review'" in refused(config, "--import", "review.csv")
    Path("other.csv").write_text("id,text,label,review\np4,play queen,x,../../../etc\n")
    assert "review '../../../etc': 'tiny' has none of this name" in refused(config, "--import", "other.csv")
    Path("broken.json").write_text('[{"id": 1')
    assert "neither CSV nor the JSON of Argilla or Label Studio" in refused(config, "--import", "broken.json")
    assert "missing.csv" in refused(config, "--import", "missing.csv")


def review_of(problem: dict[str, Any], *rows: ReviewRow) -> Review:
    about = {"review_id": "0123456789ab", "purpose": "disagreement", "made_at": "", "student": "", "population": 9}
    return Review.model_validate({**about, "problem": problem, "rows": rows})


TWO = (
    ReviewRow(example_id="a", text="was it?", said={"teacher": "good", "student": "bad"}),
    ReviewRow(example_id="b", text="yes, it was", said={"teacher": "bad", "student": "good"}),
)


def read(review: Review, path: Path, by: str | None = None) -> Answers:
    return read_answers(review, answers_in(path), by)


def test_label_studio(tmp_path: Path) -> None:
    """Its export is the tasks with annotations; a cancelled one is none, and two people who agree are both named."""
    review = review_of(CLASSES, *TWO)
    tasks = json.loads(written(review, "label-studio"))
    assert tasks[0]["predictions"][0]["result"][0] == {
        "from_name": "label",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": ["bad"]},
    }
    interface = ElementTree.fromstring(label_studio_config(review.problem))
    assert [choice.get("value") for choice in interface.iter("Choice")] == ["bad", "good"]

    def annotated(label: str | None, by: Any, **more: Any) -> dict[str, Any]:
        region = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
        return {"result": [region] if label else [], "completed_by": by, "updated_at": "2026-01-02T10:00:00Z", **more}

    tasks[0]["annotations"] = [annotated("good", 3), annotated("good", {"id": 4, "email": "bo@example.org"})]
    tasks[1]["annotations"] = [annotated("bad", 3, was_cancelled=True), annotated(None, 4)]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    found = read(review, path)
    assert (found.gold["a"].by, found.gold["a"].at) == (("3", "bo@example.org"), "2026-01-02T10:00:00Z")
    assert (list(found.gold), found.open, found.bad) == (["a"], 1, [])
    tasks[0]["annotations"][1] = annotated("bad", 4)
    path.write_text(json.dumps(tasks))
    found = read(review, path)
    assert (found.gold, found.reasons) == ({}, {"disputed": 1})


def test_argilla(tmp_path: Path) -> None:
    review = review_of(CLASSES, *TWO)
    records = json.loads(written(review, "argilla"))
    assert records[0]["suggestions"] == {"label": {"value": "bad", "score": None, "agent": "student"}}
    records[0]["responses"] = {"label": [{"value": "good", "user_id": "u1"}]}
    records[1]["responses"] = {"label": [{"value": "bad", "user_id": "u1", "status": "discarded"}]}
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    found = read(review, path)
    assert (found.gold["a"].label, found.gold["a"].by, found.open, found.bad) == ("good", ("u1",), 1, [])


def test_entities_of_label_studio(tmp_path: Path) -> None:
    review = review_of({"kind": "entities", "labels": ["CITY"]}, ReviewRow(example_id="a", text="from rome to oslo"))
    (task,) = json.loads(written(review, "label-studio"))
    spans = [(5, 9, "CITY"), (13, 17, "CITY")]
    values = [{"start": start, "end": end, "text": "", "labels": [name]} for start, end, name in spans]
    result = [{"from_name": "label", "to_name": "text", "type": "labels", "value": value} for value in values]
    task["annotations"] = [{"result": result, "completed_by": 1}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]))
    problem = problem_for(review.problem)
    gold = read(review, path).gold["a"]
    assert problem.parts(gold.label) == ["CITY:2-2", "CITY:4-4"]
    assert gold.written[0] == {"start": 5, "end": 9, "label": "CITY"}
    task["annotations"][0]["result"] = []
    path.write_text(json.dumps([task]))
    assert problem.parts(read(review, path).gold["a"].label) == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "c", "label": "good"}, "unknown-id"),
        ({"id": "a", "label": "good", "text": "was it not?"}, "other-text"),
        ({"id": "a", "label": "fine"}, "bad-gold"),
        ({"id": "a", "label": ["good", "bad"]}, "bad-gold"),
        ({"id": "a", "label": "good", "review": "ba9876543210"}, "other-review"),
        ({"id": "a", "label": "good", "by": None}, "nobody"),
        (17, "not-json"),
    ],
)
def test_answers_that_cannot_be_used(tmp_path: Path, row: Any, reason: str) -> None:
    path = tmp_path / "answers.jsonl"
    given = {"by": "ada", "review": "0123456789ab", **row} if isinstance(row, dict) else row
    path.write_text(json.dumps([given, {"id": "b", "label": "good", "by": "ada"}]))
    found = read(review_of(CLASSES, *TWO), path)
    assert (found.reasons, list(found.gold)) == ({reason: 1}, ["b"])


@pytest.mark.parametrize(
    ("problem", "text", "label"),
    [
        (CLASSES, "a", "good"),
        ({"kind": "multi-label", "labels": ["x", "y, z"]}, "a", '["x", "y, z"]'),
        ({"kind": "multi-label", "labels": ["x", "y"]}, "a", "[]"),
        ({"kind": "regression", "low": 0, "high": 5, "step": 1}, "a", "3"),
        ({"kind": "text"}, "a", "some, text\nof two lines"),
        ({"kind": "text", "json_schema": {"type": "object"}}, "a", '{"b": [1, 2]}'),
        ({"kind": "slots", "intents": {"PLAY": ["ARTIST"]}}, "play abba", "[IN:PLAY [SL:ARTIST abba ] ]"),
        ({"kind": "entities", "labels": ["CITY"]}, "to rome", '[{"start": 3, "end": 7, "label": "CITY"}]'),
        ({"kind": "constituency", "labels": ["S", "NP"]}, "a b", "(S (NP (DT a)) (NN b))"),
        ({"kind": "constituency", "labels": ["S", "NP"], "tags": False}, "a b", "(S (NP a) b)"),
        ({"kind": "chat"}, '[{"role": "user", "content": "hi"}]', "hello"),
    ],
)
def test_labels_of_every_kind_come_back_as_gold(tmp_path: Path, problem: Any, text: str, label: str) -> None:
    """Through a CSV, the check, and the file of gold rows, which `data.labeled` then reads; in columns of its own."""
    review = review_of(problem, ReviewRow(example_id="a", text=text))
    path, gold_file = tmp_path / "review.csv", tmp_path / "gold.jsonl"
    path.write_text(written(review, "csv"))
    fill(path, {"a": label}, by="ada")
    found = read(review, path)
    assert (found.reasons, found.open) == ({}, 0)
    columns = ColumnsConfig(id="about.name", text="utterance", label="answer")
    config = SimpleNamespace(data=SimpleNamespace(columns=columns))
    module.append_gold(config, review, list(found.gold.values()), gold_file)  # type: ignore[arg-type]
    (example,) = read_examples(str(gold_file), columns, problem_for(review.problem), gold="required")
    assert example.label == found.gold["a"].label
    assert example.example_id == "a"
    assert module.append_gold(config, review, list(found.gold.values()), gold_file) == (0, 1)  # type: ignore[arg-type]


def test_rows_that_cannot_be_read_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    path.write_text('id,text,label,by,review\na,was it?,good,ada,0123456789ab\nb,"yes, it was",good\n')
    found = read(review_of(CLASSES, *TWO), path)
    assert (list(found.gold), found.reasons) == (["a"], {"wrong-columns": 1})
    assert all(isinstance(one, Answer | BadRow) for one in answers_in(path))


@pytest.mark.slow
def test_a_real_student_is_asked(
    tiny_classes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """From a whole run to gold rows that the next run reads, and to an estimate that is near the score on all rows."""
    values = {**tiny_classes, "store": {"root": str(tmp_path / "store")}}
    made = whole_run(values)
    assert "## Hygiene of the rows" in made.page
    time = "2026-01-01T03:00:00+00:00"
    page = made.store.latest("tiny-classes", "report")
    assert page is not None
    artifacts = tuple(f"{ref.kind}/{ref.key}" for ref in (*made.result.refs(), made.store.ref(page)))
    keep_run(
        made.store, RunRecord(name="tiny-classes", run_id="r", started_at=time, ended_at=time, artifacts=artifacts)
    )
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values))

    code, out, err = command("review", config, "--rows", "5")
    assert code == 0, err
    rows = rows_of(Path("review.csv"))
    assert 0 < len(rows) <= 5
    assert all(len({row["teacher"], row["stage 1"], row["student"]}) == 2 for row in rows)
    fill(Path("review.csv"), {row["id"]: "up" for row in rows}, by="ada")
    assert command("review", config, "--import", "review.csv")[0] == 0
    golds = list(read_examples("gold.jsonl", ColumnsConfig(), problem_for(made.config.problem), gold="required"))
    assert [one.label for one in golds] == ["up"] * len(rows)

    pool = tiny_classes["data"]["unlabeled"]
    code, out, err = command("review", config, "--for", "estimate", "--rows", "30", "--from", pool, "--out", "t.csv")
    assert code == 0, err
    assert "t.csv: 30 of 60 test rows" in out
    known = {row["id"]: row["label"] for row in map(json.loads, Path(pool).read_text().splitlines())}
    fill(Path("t.csv"), {row["id"]: known[row["id"]] for row in rows_of(Path("t.csv"))}, by="bo")
    told = json.loads(command("review", config, "--import", "t.csv", "--json")[1])
    accuracy = next(score for score in told["scores"] if score["metric"] == "accuracy")
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert (accuracy["n"], told["population"]) == (30, 60)
