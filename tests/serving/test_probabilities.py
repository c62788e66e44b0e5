"""Students that do not predict classes: they report a confidence, and refuse requests for probabilities."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trained_student import train

Command = Callable[..., tuple[int, str, str]]

TREES = [
    "(S (NP the film) (VP was great))",
    "(S (NP the weather) (VP was (NP a play)))",
    "(S (NP today) (VP was dull))",
]


def written(folder: Path, rows: Callable[[str, int], dict[str, str]]) -> dict[str, str]:
    for role in ("labeled", "unlabeled", "test"):
        lines = [json.dumps({"id": f"{role}-{number}", **rows(role, number)}) for number in range(9)]
        (folder / f"{role}.jsonl").write_text("\n".join(lines) + "\n")
    return {role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")}


def tree_row(role: str, number: int) -> dict[str, str]:
    tree = TREES[number % 3]
    if number >= 3:
        tree = tree.replace("was", f"was {role[0]}{number}", 1)
    words = [token for token in tree.replace("(", "( ").replace(")", " )").split() if token not in "()"]
    return {"text": " ".join(word for word in words if word not in ("S", "NP", "VP")), "label": tree}


@pytest.fixture(scope="module")
def answering(
    tiny_slots: dict[str, Any],
    tiny_encoder: Path,
    tiny_t5: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Any]:
    trained: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind in trained:
            return trained[kind]
        folder = tmp_path_factory.mktemp(kind)
        values = {**tiny_slots, "store": {"root": str(folder / "store")}}
        training = tiny_slots["student"]["training"]
        writer = {"kind": "seq2seq", "model": str(tiny_t5), "target": "text", "training": training}
        if kind == "text":
            values["problem"] = {"kind": "text"}
            values["data"] = written(folder, lambda role, n: {"text": f"play {role} {n}", "label": f"time {n % 2}"})
            values["student"] = writer
        elif kind == "trees":
            values["problem"] = {"kind": "constituency", "tags": False}
            values["data"] = written(folder, tree_row)
            values["student"] = {"kind": "token-classification", "model": str(tiny_encoder), "training": training}
        else:
            values["student"] = {**writer, "long_targets": "cut"}
        trained[kind] = train(values)
        return trained[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "what"),
    [("text", "a free text"), ("trees", "a tree"), ("written-slots", "a parse that is written token by token")],
)
def test_probabilities_of_what_has_none(
    kind: str, what: str, command: Command, answering: Callable[[str], Any], tmp_path: Path
) -> None:
    one = answering(kind)
    code, out, err = command("predict", one.student.uri, one.test_file)
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines
    assert all(0 <= line["confidence"] <= 1 and isinstance(line["label"], str) for line in lines)
    out_file = tmp_path / "out.parquet"
    code, out, err = command("predict", one.student.uri, one.test_file, "--probabilities", "--out", out_file)
    assert (code, out) == (2, "")
    assert f"is {what}, which has no classes" in err
    assert len(err.splitlines()) == 1
    assert not out_file.exists()
