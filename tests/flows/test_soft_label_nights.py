"""Nights of the soft-label recipe: new rows alone are asked about, and the exported student meets the champion."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.tracking.registry import reigning_version
from tiny_data import class_row, write_lines

SIZES = {"train": 60, "dev": 12, "unseen": 40, "unlabeled": 20}
TRAIN, POOL = SIZES["train"], SIZES["unlabeled"]
BAD = {"epochs": 1, "learning_rate": 1e-6}
BETTER = ["student.training.epochs=40", "student.training.learning_rate=0.02"]


@pytest.fixture
def config(endpoint_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Reviews in files, a folder of them to train on, and the server as a teacher that is sure of nine in ten."""

    def label_of(body: dict[str, Any]) -> str:
        item = body["messages"][-1]["content"]
        label, other = ("up", "down") if "great" in item or "good" in item else ("down", "up")
        endpoint_server.alternatives = [(label, math.log(0.9)), (other, math.log(0.1))]  # read right after the text
        return label

    endpoint_server.reply = label_of
    monkeypatch.setenv("RETORT_TEST_TEACHER", endpoint_server.url)
    addresses = {role: tmp_path / "data" / role / "day1.jsonl" for role in SIZES}
    for role, size in SIZES.items():
        addresses[role].parent.mkdir(parents=True)
        write_lines(addresses[role], rows_of(role, size))
    return {
        "kind": "soft-label",
        "name": "soft-nights",
        "problem": {"kind": "classification"},
        "data": {
            "train": str(addresses["train"].parent),
            "dev": str(addresses["dev"]),
            "tests": {"unseen": str(addresses["unseen"])},
            "unlabeled": str(addresses["unlabeled"]),
        },
        "teacher": {
            "kind": "endpoint",
            "model": "scripted",
            "url": "${RETORT_TEST_TEACHER}",
            "labels": "soft",
            "concurrency": 4,
        },
        "student": {
            "kind": "tiny",
            "vocabulary_size": 100,
            "embedding_size": 8,
            "hidden_size": 8,
            "training": BAD,
        },
        "grid": {"lambda": [1], "distillation_temperature": [1], "seeds": 1},
        "arms": ["soft-only", "with-pool"],
        "resamples": 200,
        "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
        "execution": {"device": "cpu"},
        "store": {"root": str(tmp_path / "store")},
    }


def check_scores_are_told(night: Any) -> None:
    """Of each step that scores an arm or the teacher, made or found, as `run --json` prints them."""
    scores = {step.name: step.scores for step in night.finished.stages if step.name.endswith("-scores")}
    arms, roles = ("teacher", "soft-only", "with-pool"), ("dev", "unseen")
    assert scores.keys() == {"teacher/train-scores", *(f"{arm}/{role}-scores" for arm in arms for role in roles)}
    assert all(scores.values())
    assert scores["teacher/unseen-scores"]["accuracy"] == 1.0


@pytest.mark.slow
def test_nights_with_new_rows_a_verdict_a_promotion_and_nothing_new(
    config: dict[str, Any],
    endpoint_server: Any,
    night: Callable[..., Any],
    artifact: Callable[[str, str], str],
    tmp_path: Path,
) -> None:
    uri, path = config["tracking"]["uri"], tmp_path / "soft-nights.yaml"
    path.write_text(yaml.safe_dump(config))

    # The first night: everything is new, and nobody reigns.
    first = night(path)
    assert first.changes == {"train": (TRAIN, 0, 0, 0), "unlabeled": (POOL, 0, 0, 0)}
    assert first.finished.summary.gate.outcome == "first"
    assert first.promotion.outcome == "promoted"
    assert reigning_version(uri, "soft-nights").version == "1"
    assert endpoint_server.asked.keys() == {item_of(row) for role, n in SIZES.items() for row in rows_of(role, n)}
    assert set(endpoint_server.asked.values()) == {1}
    check_scores_are_told(first)

    # 5 % new training rows: these alone are asked about, and a student that is no better does not reign.
    endpoint_server.asked.clear()
    new = [
        {"id": f"new-{number}", "text": f"the film number{number} was {word}", "label": label}
        for number, (word, label) in enumerate((("good", "up"), ("dull", "down"), ("great", "up")))
    ]
    write_lines(Path(config["data"]["train"]) / "day2.jsonl", new)
    second = night(path)
    assert second.changes == {"train": (3, 0, 0, TRAIN), "unlabeled": (0, 0, 0, POOL)}
    assert endpoint_server.asked == {item_of(row): 1 for row in new}
    verdict = second.finished.summary.gate
    assert verdict.outcome == "refused"
    (reason,) = verdict.refusals
    assert reason.startswith("The final student scores ")
    assert second.promotion.outcome == "refused"
    assert reigning_version(uri, "soft-nights").version == "1"
    told = artifact(second.finished.run_id, "night")
    assert "3 new rows, 0 changed, 0 gone, 60 as before" in told
    assert "did not pass the gate" in told
    assert reason in told
    check_scores_are_told(second)

    # Other settings: no row is asked about, and the better student reigns.
    endpoint_server.asked.clear()
    third = night(path, overrides=BETTER)
    assert endpoint_server.asked.total() == 0
    verdict = third.finished.summary.gate
    assert verdict.outcome == "passed"
    assert verdict.contest.gain > 0
    assert verdict.n == SIZES["unseen"]
    assert third.promotion.outcome == "promoted", third.promotion.text
    assert third.promotion.replaced == "1"
    champion = reigning_version(uri, "soft-nights")
    assert champion.version == third.promotion.version != "1"
    assert champion.tags["gate.outcome"] == "passed"
    assert float(champion.tags["gate.gain"]) > 0
    assert verdict.reasons[0] in artifact(third.finished.run_id, "night")

    # Nothing new, twice: the first of these still has to say that the student reigns now.
    night(path, overrides=BETTER)
    started = time.monotonic()
    last = night(path, overrides=BETTER)
    assert last.changes == {"train": (0, 0, 0, TRAIN + 3), "unlabeled": (0, 0, 0, POOL)}
    assert {step.status for step in last.finished.stages} == {"HIT"}
    assert last.finished.summary.gate.outcome == "reigns"
    assert last.promotion.outcome == "reigns"
    assert reigning_version(uri, "soft-nights").version == champion.version
    assert endpoint_server.asked.total() == 0
    assert "nothing new" in artifact(last.finished.run_id, "night")
    check_scores_are_told(last)
    assert time.monotonic() - started < 300


def rows_of(role: str, size: int) -> list[dict[str, str]]:
    return [class_row(role, number) for number in range(size)]


def item_of(row: dict[str, str]) -> str:
    """The last turn of the request for a row."""
    return f"Input: text: {row['text']}\nOutput:"
