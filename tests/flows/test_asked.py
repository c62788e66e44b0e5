"""A whole run with a teacher that is asked over HTTP: sound, faulty, and killed in mid-labeling."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

Build = Callable[..., dict[str, Any]]
ROWS = 52 + 12
"""Different texts of the pool (of its 60), and of the labeled set, which the teacher is asked about as well."""


def test_every_row_is_paid_for_once_in_its_life(
    asked_classes: dict[str, Any], endpoint_server: Any, configured: Build, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    summary = run_here(asked_classes).summary
    assert endpoint_server.answered.total() == ROWS
    assert set(endpoint_server.asked.values()) == {1}
    own = next(row for row in summary.systems if row.name == "teacher, labeled set")
    assert (own.measured_on, own.scores["accuracy"].value, own.scores["accuracy"].n) == ("labelled", 1.0, 12)
    (facts,) = summary.teachers
    assert facts.metrics["prompt_tokens"] == 100 * ROWS
    assert facts.metrics["money"] == pytest.approx((100 * 1.0 + 3 * 10.0) * ROWS / 1e6)
    assert dict(facts.lines)["completions asked for"].startswith("64,")

    more = configured(asked_classes, tmp_path / "store", teacher__sampling={"max_tokens": 999}, teacher__concurrency=2)
    again = run_here(more).summary
    assert endpoint_server.asked.total() == ROWS, "a larger limit changes nothing about what ended properly"
    assert "the ledger had every completion" in dict(again.teachers[0].lines)["asked for these labels"]
    assert again.final.scores == summary.final.scores


def test_new_rows_alone_are_asked_about(
    asked_classes: dict[str, Any], endpoint_server: Any, configured: Build, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    run_here(asked_classes)
    endpoint_server.asked.clear()
    pool = Path(asked_classes["data"]["unlabeled"]).read_text()
    grown = tmp_path / "grown.jsonl"
    grown.write_text(pool + json.dumps({"id": "new", "text": "the film anew was dull"}) + "\n")
    run_here(configured(asked_classes, tmp_path / "store", data__unlabeled=str(grown)))
    assert list(endpoint_server.asked) == ["Input: the film anew was dull\nOutput:"]


def test_a_faulty_server_loses_nothing_and_is_not_asked_twice(
    asked_classes: dict[str, Any], endpoint_server: Any, configured: Build, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    kind = type(endpoint_server)
    endpoint_server.fail(kind.status(429, "slow down", **{"Retry-After": "1"}), times=2)
    endpoint_server.fail(kind.status(500, "oh"), times=2)
    endpoint_server.fail(kind.cut, times=2)
    endpoint_server.fail(kind.truncated, times=2)
    endpoint_server.fail(kind.hang, times=1)
    endpoint_server.fail(kind.error(400, "not this row"), item="the film a")  # rows whose name begins with a
    values = configured(asked_classes, tmp_path / "store", teacher__timeout_seconds=10, teacher__min_success_ratio=0.9)
    summary = run_here(values).summary
    refused = summary.failures.reasons["http-400"]
    assert refused >= 1
    assert summary.labels[0].rows == 60 - refused
    assert max(endpoint_server.answered.values()) == 1
    assert summary.failures.examples[0].raw


@pytest.mark.slow
def test_a_killed_run_asks_again_for_five_seconds_at_most(
    asked_classes: dict[str, Any],
    endpoint_server: Any,
    start_command: Callable[..., subprocess.Popen[str]],
    run_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    endpoint_server.delay_seconds = 1.5  # 4 answers each time: 48 take 18 s
    process = start_command(asked_classes, tmp_path)
    end = time.monotonic() + 600
    answered_at: list[tuple[float, int]] = []
    while endpoint_server.answered.total() < 48:
        assert time.monotonic() < end, process.communicate()
        assert process.poll() is None, process.communicate()
        answered_at.append((time.monotonic(), endpoint_server.answered.total()))
        time.sleep(0.05)
    killed = time.monotonic()
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    safe = max(count for moment, count in answered_at if moment <= killed - 8)  # 3 s for a busy machine
    assert safe > 16

    endpoint_server.delay_seconds = 0.0
    run_here(asked_classes)
    twice = sum(count > 1 for count in endpoint_server.answered.values())
    assert len(endpoint_server.answered) == ROWS
    assert twice <= 48 - safe + 4, f"{twice} asked again, {safe} of 48 had come 8 s before the kill; 4 were under way"


def test_an_ensemble_trusts_the_teacher_that_is_right(
    asked_classes: dict[str, Any], endpoint_server: Any, configured: Build, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    right = endpoint_server.reply
    endpoint_server.reply = lambda body: right(body) if body["model"] == "wise" else "up"
    one = asked_classes["teacher"]
    teacher = {"kind": "ensemble", "merge": "weighted", "members": [{**one, "model": m} for m in ("fool", "wise")]}
    summary = run_here(configured(asked_classes, tmp_path / "store", teacher=teacher)).summary
    scores = {row.name: row.scores["accuracy"].value for row in summary.systems if row.role == "teacher"}
    assert scores == {"teacher": 1.0, "teacher, labeled set": 1.0, "teacher-0": 0.5, "teacher-1": 1.0}
    fool, wise = (dict(facts.lines) for facts in summary.teachers)
    assert float(wise["weight of its vote"]) > float(fool["weight of its vote"])
    assert fool["rows labeled as by teacher 0, 1, ..."] == "100.0 %, 50.0 %"
    assert wise["right units on the labeled set"] == "100.0 %"
    assert endpoint_server.answered.total() == 2 * ROWS, "each member was asked about each text"
