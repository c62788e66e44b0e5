"""Rationales: what is asked for, what is read, and what reaches the student."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import ConstituencyConfig, MckdConfig, RegressionConfig, TextConfig
from retort.config.teachers import EndpointConfig, VllmConfig
from retort.errors import ConfigError, DataError
from retort.problems.classification import Classification
from retort.problems.constituency import Constituency
from retort.problems.regression import Regression
from retort.problems.text import FreeText
from retort.recipes import parse_config
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.checks import check, resolve
from retort.recipes.mckd.steps import ingest
from retort.records.base import Example, ParseFailure
from retort.teachers.constraints import held_to
from retort.teachers.ledger import Entry
from retort.teachers.parsing import CompletionParser, Labeled
from retort.teachers.rationales import constraint_of, parse_reasoned
from retort.teachers.request_builder import request_builder
from tiny_data import TRAINING, class_row, write_lines
from whole_run import whole_run

CLASSES = Classification(["up", "down"])
MARKS = Regression(RegressionConfig(kind="regression", low=0, high=5, step=1))
TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP"]))
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}, "$defs": {"name": {"type": "string"}}}
JSON = FreeText(TextConfig(kind="text", json_schema=CITY))
LABELED = [Example("l0", "so good", "up", rationale='it is "good"'), Example("l1", "so bad", "down")]


def teacher(**more: Any) -> EndpointConfig:
    return EndpointConfig.model_validate(
        {"kind": "endpoint", "url": "http://a/v1", "model": "m", "rationales": True, **more}
    )


@pytest.mark.parametrize(
    ("completion", "label", "rationale"),
    [
        ('{"rationale": "it is good", "label": "up"}', "up", "it is good"),
        ('{"rationale": " two\nlines ", "label": "Up."}', "up", "two\nlines"),
        ('```json\n{\n  "rationale": "x",\n  "label": "down"\n}\n```', "down", "x"),
        ('<think>{"label": "down", "rationale": "no"}</think>{"label": "up", "rationale": "yes"}', "up", "yes"),
        ('Here it is: {"rationale": "a {brace}", "label": "up"} I hope it helps.', "up", "a {brace}"),
        ('{"note": 1} {"rationale": "second object", "label": "up"}', "up", "second object"),
    ],
)
def test_both_are_read(completion: str, label: str, rationale: str) -> None:
    reading, why = parse_reasoned(CLASSES, "so good", completion, "stop")
    assert (reading.outcome, why) == (label, rationale)


@pytest.mark.parametrize(
    ("completion", "finish_reason", "reason"),
    [
        ("up", "stop", "no-rationale"),
        ('{"label": "up"}', None, "no-rationale"),
        ('{"rationale": " ", "label": "up"}', "stop", "no-rationale"),
        ('{"rationale": 3, "label": "up"}', "stop", "no-rationale"),
        ('["rationale", "label"]', "stop", "no-rationale"),
        ("", "stop", "no-rationale"),
        ('{"rationale": "\\ud83d", "label": "up"}', "stop", "no-rationale"),
        ('{"rationale": "x", "label": "\\ude00"}', "stop", "no-rationale"),
        ('{"rationale": "x", "label": ' + "1" * 5000 + "}", "stop", "no-rationale"),
        ('{"rationale": "x", "label": NaN}', "stop", "unknown-label"),
        ('{"a":' * 100_000, "stop", "no-rationale"),
        ('{"rationale": "it is go', "length", "cut-short"),
        ('{"rationale": "it is go', "content_filter", "filtered"),
        ('{"rationale": "it is go', "error", "interrupted"),
        ('{"rationale": "x", "label": "sideways"}', "stop", "unknown-label"),
        ('{"rationale": "x", "label": null}', "stop", "unknown-label"),
    ],
)
def test_what_lacks_one_is_set_aside_with_its_text(completion: str, finish_reason: str | None, reason: str) -> None:
    reading, why = parse_reasoned(CLASSES, "so good", completion, finish_reason)
    assert isinstance(reading.outcome, ParseFailure)
    assert (reading.outcome.reason, reading.outcome.raw, why) == (reason, completion, None)


def test_labels_that_are_no_text_are_read_too() -> None:
    assert parse_reasoned(MARKS, "x", '{"rationale": "r", "label": 3}')[0].outcome == "3"
    assert parse_reasoned(JSON, "x", '{"rationale": "r", "label": {"city": "Rome"}}')[0].outcome == '{"city":"Rome"}'
    tree = parse_reasoned(TREES, "a b", '{"rationale": "r", "label": "(S a (NP b))"}')[0].outcome
    assert tree == TREES.parse("a b", "(S a (NP b))")


def test_a_free_text_never_takes_the_object_for_the_label() -> None:
    reading, _ = parse_reasoned(FreeText(TextConfig(kind="text")), "x", '{"rationale": "r", "label": ', "stop")
    assert isinstance(reading.outcome, ParseFailure)


def test_decoding_is_held_to_both() -> None:
    schema = constraint_of(CLASSES, teacher(), "so good")
    assert schema is not None
    assert schema.json_schema is not None
    check = Draft202012Validator({**schema.json_schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
    assert list(schema.json_schema["properties"]) == ["rationale", "label"], "a model writes them in this order"
    assert check.is_valid(json.loads('{"rationale": "r", "label": "up"}'))
    for wrong in ('{"rationale": "r", "label": "sideways"}', '{"label": "up"}', '"up"'):
        assert not Draft202012Validator(json.loads(json.dumps(schema.json_schema))).is_valid(json.loads(wrong))
    nested = constraint_of(JSON, teacher(), "x")
    assert nested is not None
    assert Draft202012Validator(nested.json_schema).is_valid({"rationale": "r", "label": {"city": "Rome"}})
    assert not Draft202012Validator(nested.json_schema).is_valid({"rationale": "r", "label": {"city": 1}})
    assert held_to(CLASSES, teacher(constraint_style="json-schema")) == "held to a rationale and a label"
    assert held_to(TREES, teacher(constraint_style="vllm")) == "held to a rationale and a label"
    assert constraint_of(CLASSES, teacher(rationales=False), "x") == CLASSES.constraint("x")


def test_demonstrations_are_the_rows_that_have_one() -> None:
    builder = request_builder(CLASSES, teacher(), LABELED)
    system, row, answer = builder.everything
    assert '"rationale"' in system.content.splitlines()[-1]
    assert row.content == "Input: so good\nOutput:"
    assert json.loads(answer.content) == {"rationale": 'it is "good"', "label": "up"}
    json_row = Example("l0", "x", '{"city":"Rome"}', rationale="r")
    shown = request_builder(JSON, teacher(), [json_row]).everything[-1].content
    assert json.loads(shown)["label"] == {"city": "Rome"}
    with pytest.raises(ConfigError, match=r"no labeled row has a rationale to show.*demonstrations: 0"):
        request_builder(CLASSES, teacher(), LABELED[1:])
    assert len(request_builder(CLASSES, teacher(prompt={"demonstrations": 0}), LABELED[1:]).everything) == 1


def test_of_several_samples_the_rationale_is_one_of_the_label_that_won() -> None:
    config = teacher(sampling={"samples": 3, "sampling_temperature": 1.0})
    said = ['{"rationale": "a", "label": "down"}', "nothing", '{"rationale": "c", "label": "down"}']
    entries = [Entry(b"", text, "stop", 99, 1, 0, 1, (), 0.0) for text in said]
    outcome = CompletionParser(CLASSES, "accuracy", config).parse("x", entries)
    assert isinstance(outcome, Labeled)
    assert (outcome.label, outcome.rationale, round(outcome.confidence, 2)) == ("down", "a", 0.67)


def job(folder: Path, student: Path, **changes: Any) -> dict[str, Any]:
    for role, count in (("labeled", 12), ("unlabeled", 24), ("test", 8)):
        rows: list[dict[str, Any]] = [class_row(role, number) for number in range(count)]
        if role == "labeled":
            rows = [{**row, "why": f"it was {row['text'].split()[-1]}"} for row in rows[:6]] + rows[6:]
        write_lines(folder / f"{role}.jsonl", rows)
    return {
        "name": "reasoned",
        "problem": {"kind": "classification"},
        "data": {
            **{role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")},
            "columns": {"rationale": "why"},
        },
        "teacher": {"kind": "endpoint", "url": "http://a/v1", "model": "m", "rationales": True},
        "student": {
            "kind": "causal",
            "model": str(student),
            "target": "text",
            "training": {**TRAINING, "rationale_weight": 0.5},
        },
        "method": {"stages": 2, "partitions": 2, "selection": {"kind": "always"}, "fine_tuning": {"kind": "never"}},
        "baselines": ["supervised"],
        "evaluation": {"resamples": 100},
        "store": {"root": str(folder / "store")},
        "execution": {"device": "cpu"},
        **changes,
    }


def answer(body: dict[str, Any]) -> str:
    word = body["messages"][-1]["content"].split("\n")[0].split()[-1]
    return json.dumps({"rationale": f"because of {word}", "label": "up" if word in ("great", "good") else "down"})


def test_a_whole_run(tiny_causal: Path, endpoint_server: Any, tmp_path: Path) -> None:
    endpoint_server.reply = answer
    values = job(tmp_path, tiny_causal)
    values["teacher"]["url"] = endpoint_server.url
    done = whole_run(values)
    teacher_labels, relabeled = (Pseudolabels.open(done.store, ref) for ref in done.result.labels[:2])
    known = {row["example_id"]: row["rationale"] for row in teacher_labels.rationales()}
    assert len(known) == 24
    assert set(known.values()) == {f"because of {word}" for word in ("great", "good", "awful", "dull")}
    old = {row["example_id"]: row["label"] for row in teacher_labels.rows()}
    new = {row["example_id"]: row["label"] for row in relabeled.rows()}
    assert {row["example_id"] for row in relabeled.rationales()} == {id for id in new if new[id] == old[id]}
    counts = [done.store.manifest_of(student).counts for student in done.result.rounds[0].students]
    assert sum(one["rationales"] for one in counts) == 24
    supervised = done.store.latest("reasoned", "supervised/student")
    assert supervised is not None
    assert "rationales" not in supervised.counts, "gold labels are learned by themselves"


def test_recorded_completions_may_have_them(tiny_causal: Path, tmp_path: Path) -> None:
    values = job(tmp_path, tiny_causal)
    lines = [
        {"custom_id": f"unlabeled-{n}", "response": {"status_code": 200, "body": {"choices": [{"message": {
            "role": "assistant", "content": '{"rationale": "r", "label": "up"}' if n else "up"}}]}}}
        for n in range(24)
    ]  # fmt: skip
    write_lines(tmp_path / "said.jsonl", lines)
    values["teacher"] = {"kind": "recorded", "completions": str(tmp_path / "said.jsonl"), "rationales": True}
    values["method"] |= {"stages": 1}
    values["baselines"] = []
    done = whole_run(values)
    labels = Pseudolabels.open(done.store, done.result.labels[0])
    assert [row["rationale"] for row in labels.rationales()] == ["r"] * 23
    assert [row["reason"] for row in labels.failures()] == ["no-rationale"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.columns.rationale": None}, r"the demonstrations need rationales too.*data.columns.rationale"),
        ({"teacher.rationales": False}, r"rationale_weight: this teacher \(kind 'endpoint'\) gives no rationales"),
        ({"student.target": "classes"}, r"rationale_weight: this student \(kind 'causal'\) gives classes"),
        ({"teacher.labels": "soft"}, r"rationales are written before a label"),
        ({"problem": {"kind": "chat"}}, r"a chat's label is the assistant's whole turn"),
        ({"student.training.rationale_weight": 1}, r"rationale_weight"),
        ({"teacher": {"kind": "finetuned"}}, r"this teacher \(kind 'finetuned'\) gives no rationales"),
    ],
)
def test_what_does_not_fit_together_is_told(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    values = job(tmp_path, tmp_path)
    for name, value in changes.items():
        *parents, last = name.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    with pytest.raises(ConfigError, match=told):
        parse_config(values, "job.yaml")


def test_settings_that_are_not_used_are_in_no_key() -> None:
    plain = teacher(rationales=False).model_dump()
    assert "rationales" not in plain
    assert "rationales" in teacher().model_dump()
    with pytest.raises(ValueError, match=r"top_logprobs are of a whole completion"):
        VllmConfig(kind="vllm", model="m", rationales=True, sampling={"top_logprobs": 5})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, float("inf")])
def test_a_rationale_that_is_no_text_is_told_with_its_line(value: Any, tiny_causal: Path, tmp_path: Path) -> None:
    values = job(tmp_path, tiny_causal)
    rows = [json.loads(line) for line in (tmp_path / "labeled.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "labeled.jsonl", [{**rows[0], "why": value}, *rows[1:]])
    with pytest.raises(DataError, match=r"labeled.jsonl, line 1: 'why' is .*, where a text"):
        check(MckdConfig.model_validate(values))


def test_what_the_pool_has_in_that_column_is_not_read(tiny_causal: Path, tmp_path: Path) -> None:
    values = job(tmp_path, tiny_causal)
    rows = [json.loads(line) for line in (tmp_path / "unlabeled.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "unlabeled.jsonl", [{**row, "why": ["no", "text"]} for row in rows])
    config = resolve(MckdConfig.model_validate(values))
    assert made_or_found(config, ingest(config, "unlabeled")).rows == 24
