"""Whole runs whose labels are sets of classes or entities: a teacher that is asked, merging, scores, answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.config import MckdConfig
from retort.io.parquet import read_rows
from retort.store.opening import open_store
from tiny_data import TRAINING, write_lines

WORDS = {"good": "great", "bad": "awful", "slow": "dull"}
Run = Callable[..., Any]


def names_of(item: str) -> list[str]:
    """The set of a text, and what the pretended teacher writes."""
    return sorted(name for name, word in WORDS.items() if word in item.split())


def spans_of(text: str) -> list[tuple[int, int, str]]:
    places = [(text.find(word), word, name) for word, name in (("awful film", "film"), ("weather", "topic"))]
    return [(at, at + len(word), name) for at, word, name in sorted(places) if at >= 0]


def text_of(role: str, number: int) -> str:
    words = [word for bit, word in enumerate(("great", "awful film", "dull", "weather")) if number >> bit & 1]
    return " ".join([*words, "by", role, f"{number}"])


def config(folder: Path, label_of: Callable[[str], Any], **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    for role, count in (("labeled", 16), ("unlabeled", 48), ("test", 16)):
        texts = [text_of(role, number) for number in range(count)]
        rows = [{"id": f"{role}-{number}", "text": text, "label": label_of(text)} for number, text in enumerate(texts)]
        write_lines(folder / f"{role}.jsonl", rows)
    return {
        "name": "desk",
        "data": {role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")},
        "baselines": [],
        "evaluation": {"resamples": 100},
        "store": {"root": str(folder / "store")},
        "execution": {"device": "cpu"},
        **settings,
    }


def made(values: dict[str, Any], stage: str) -> tuple[str, Path]:
    """The address and the local folder of what a stage of the run made."""
    store = open_store(MckdConfig.model_validate(values).store)
    manifest = store.latest("desk", stage)
    assert manifest is not None
    ref = store.ref(manifest)
    return ref.uri, store.fetch(ref)


def teacher(endpoint_server: Any, **settings: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "url": endpoint_server.url, "model": "m", "constraint_style": "vllm", **settings}


@pytest.mark.slow
def test_sets_of_classes_from_the_endpoint_to_the_answers(
    tiny_encoder: Path, endpoint_server: Any, run_here: Run, command: Run, tmp_path: Path
) -> None:
    endpoint_server.reply = lambda body: json.dumps(names_of(body["messages"][-1]["content"]))
    values = config(
        tmp_path / "sets",
        names_of,
        problem={"kind": "multi-label"},
        teacher=teacher(endpoint_server),
        student={
            "kind": "sequence-classification",
            "model": str(tiny_encoder),
            "training": {**TRAINING, "epochs": 40, "learning_rate": 5e-3},
        },
        # Each row gets two labels, which are merged by their mean probabilities.
        method={
            "stages": 2,
            "partitions": 3,
            "scheme": "disjoint",
            "selection": {"kind": "always"},
            "fine_tuning": {"kind": "never"},
        },
        gate={"slices": [{"name": "slow ones", "label": "slow", "floor": 0.0, "min_rows": 2}]},
    )
    summary = run_here(values).summary
    grammar = endpoint_server.bodies[0]["structured_outputs"]["grammar"]
    assert r'first0 ::= "\"bad\"" more1 | first1' in grammar
    teacher_row = next(row for row in summary.systems if row.name == "teacher")
    assert {name: score.value for name, score in teacher_row.scores.items()} == dict.fromkeys(
        ("micro_f1", "macro_f1", "jaccard", "exact_match"), 1.0
    )
    merged = list(read_rows(made(values, "stage1/pseudolabels")[1] / "rows.parquet"))
    assert {row["labeler"].count("+") for row in merged} == {1}
    for row in merged:
        present = [
            pair[1] > pair[0] for pair in zip(row["probabilities"][::2], row["probabilities"][1::2], strict=True)
        ]
        assert json.loads(row["label"]) == [name for name, there in zip(sorted(WORDS), present, strict=True) if there]
    assert summary.final.scores["micro_f1"].value > 0.6
    assert summary.final.scores["micro_f1"].n == 16
    code, out, err = command(
        "predict", made(values, "final/student")[0], tmp_path / "sets" / "test.jsonl", "--probabilities"
    )
    assert code == 0, err
    first = json.loads(out.splitlines()[0])
    assert first["labels"] == json.loads(first["label"])
    assert first["labels"] == [name for name, share in first["probabilities"].items() if share > 0.5]


@pytest.mark.slow
def test_entities_from_the_endpoint_to_the_answers(
    tiny_encoder: Path, endpoint_server: Any, run_here: Run, command: Run, tmp_path: Path
) -> None:
    def reply(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        return "[ " + "".join(f"[{name.upper()} {text[start:end]} ] " for start, end, name in spans_of(text)) + "]"

    endpoint_server.reply = reply
    values = config(
        tmp_path / "entities",
        spans_of,
        problem={"kind": "entities"},
        teacher=teacher(endpoint_server),
        student={"kind": "token-classification", "model": str(tiny_encoder), "training": {**TRAINING, "epochs": 40}},
        method={"stages": 2, "partitions": 2, "selection": {"kind": "always"}, "fine_tuning": {"kind": "never"}},
    )
    summary = run_here(values).summary
    grammar = endpoint_server.bodies[0]["structured_outputs"]["grammar"]
    assert grammar.startswith('root ::= intent0\nintent0 ::= "[ " (("[FILM " | "[TOPIC ") span "] ")* "]"\n')
    teacher_row = next(row for row in summary.systems if row.name == "teacher")
    assert {name: score.value for name, score in teacher_row.scores.items()} == {"entity_f1": 1.0, "exact_match": 1.0}
    assert summary.final.scores["entity_f1"].value > 0.6
    code, out, err = command("predict", made(values, "final/student")[0], tmp_path / "entities" / "test.jsonl")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert {"name": "TOPIC", "text": "weather", "start": 0, "end": 1} in answers[8]["entities"]
    assert answers[0]["entities"] == []
