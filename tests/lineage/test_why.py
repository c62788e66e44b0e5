"""Where a student came from, and one row's history, after two real nights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.errors import ConfigError
from retort.lineage.row import RowHistory, history
from retort.lineage.student import Lineage, Traced, trace
from retort.tracking.origin import _with_client, find_origin

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def traced(nights: Any) -> Traced:
    return Traced("models:/tiny-classes/1", nights.uri)


@pytest.fixture(scope="module")
def lineage(traced: Traced) -> Lineage:
    return trace(traced)


def told(traced: Traced, example_id: str) -> RowHistory:
    return history(traced, example_id)


def test_every_stage_back_to_the_teacher_and_the_data(nights: Any, lineage: Lineage) -> None:
    assert lineage.key == nights.old.final_student.key
    names = [step.name for step in lineage.steps]
    assert sorted(names) == [
        "final/student",
        "ingest/labeled",
        "ingest/unlabeled",
        "stage0/pseudolabels",
        "stage1/cross-labels-0",
        "stage1/cross-labels-1",
        "stage1/pseudolabels",
        "stage1/student-0",
        "stage1/student-1",
    ]
    assert names[-1] == "final/student"
    position = {step.key: index for index, step in enumerate(lineage.steps)}
    inputs = [(step, key) for step in lineage.steps for keys in step.inputs.values() for key in keys]
    assert len(inputs) == 13
    assert all(position[key] < position[step.key] for step, key in inputs)
    assert (lineage.swept, lineage.start) == ((), None)


def test_the_registry_and_the_run_say_where_it_came_from(lineage: Lineage) -> None:
    (version,) = lineage.registered
    assert (version.model, version.version, version.aliases) == ("tiny-classes", "1", ())
    assert lineage.origin is not None
    assert lineage.origin.tags["retort.git.commit"] == "abc123"
    assert lineage.origin.tags["retort.prefect.flow_run_id"] == "prefect-run-1"
    assert {data.role: (data.rows, data.gold) for data in lineage.data} == {
        "labeled": (12, 12),
        "test": (20, 20),
        "unlabeled": (60, 60),
    }
    assert all(data.source.endswith(f"/{data.role}.jsonl") for data in lineage.data)


def test_mlflows_own_client_tells_the_same_of_a_run(nights: Any, lineage: Lineage) -> None:
    assert lineage.origin is not None
    run_id = lineage.origin.run_id
    assert _with_client(nights.uri, run_id) == lineage.origin
    assert _with_client(nights.uri, "0" * 32) is find_origin(nights.uri, "0" * 32) is None


def test_mlflow_has_the_rows_that_were_set_aside(nights: Any) -> None:
    from retort.tracking.mlflow_runs import connected

    with connected(nights.uri) as client:
        (experiment,) = client.search_experiments(filter_string="name = 'tiny-classes'")
        runs = client.search_runs([experiment.experiment_id])
        counted = [run.data.metrics for run in runs if "rows_set_aside" in run.data.metrics]
    assert [(one["rows_set_aside"], one["rows_set_aside_null_text"]) for one in counted] == [(1, 1), (1, 1)]


def test_the_teacher_is_told_with_its_prompt(lineage: Lineage) -> None:
    teacher = next(step for step in lineage.steps if step.name == "stage0/pseudolabels")
    assert teacher.params["identity"] == {"kind": "endpoint", "model": "scripted", "url": "${RETORT_TEST_TEACHER}"}
    assert teacher.params["sampling"]["sampling_temperature"] == 0.0
    assert teacher.prompt is not None
    assert sorted(teacher.prompt.demonstrations) == sorted(f"labeled-{number}" for number in range(12))
    assert len(teacher.prompt.digest) == 64
    assert teacher.counts["failures"] == 2  # rows 8 and 34


def test_a_row_of_the_pool(traced: Traced, nights: Any) -> None:
    row = told(traced, "unlabeled-0")
    assert (row.sets, row.unknown_sets, row.gold, row.text) == (
        ("unlabeled",),
        (),
        "up",
        "the film aunlabeled was great",
    )
    (said,) = row.said
    (raw,) = said.completions
    assert (said.stage, raw.text, raw.finish_reason, raw.attempt) == ("stage0/pseudolabels", "up", "stop", 0)
    teacher, *votes, merged = row.labels
    assert (teacher.label, teacher.labeler, teacher.confidence) == ("up", "teacher", 1.0)
    (vote,) = votes
    assert (merged.stage, merged.label, merged.labeler) == ("stage1/pseudolabels", vote.label, vote.stage)
    learned, voted = {name for name in row.trained if name.startswith("stage1")}, vote.stage
    (student,) = learned
    assert student[-1] != voted[-1], "a student labels what it was not trained on"
    assert "final/student" in row.trained


def test_a_row_that_was_set_aside_is_labeled_by_students_alone(traced: Traced) -> None:
    row = told(traced, "unlabeled-8")
    (aside,) = row.set_aside
    assert (aside.stage, aside.raw) == ("stage0/pseudolabels", "no idea")
    assert [(raw.attempt, raw.text) for raw in row.said[0].completions] == [(0, "no idea"), (1, "no idea")]
    vote, merged = row.labels
    assert vote.stage.startswith("stage1/cross-labels-")
    assert (merged.stage, merged.label, merged.labeler) == ("stage1/pseudolabels", vote.label, vote.stage)
    assert row.trained == ("final/student",)


def test_a_demonstration_is_asked_about_without_itself(traced: Traced) -> None:
    row = told(traced, "labeled-3")
    assert (row.sets, row.demonstrated_by) == (("labeled",), ("stage0/pseudolabels",))
    assert [raw.text for raw in row.said[0].completions] == ["down"]
    assert row.trained == ()


def test_a_test_row_trained_nobody(traced: Traced) -> None:
    row = told(traced, "test-2")
    assert (row.sets, row.gold, row.trained, row.labels) == (("test",), "down", (), ())


def test_an_address_needs_no_registry(nights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = Traced(nights.old.final_student.uri, None)
    lineage = trace(found)
    assert (lineage.registered, lineage.origin, len(lineage.steps)) == ((), None, 9)
    assert told(found, "test-2").sets == ("test",), "the record of the run tells which test set it had"


def test_what_was_swept_is_told(nights: Any, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(nights.store.root, root)
    labels, student = nights.old.labels[1], nights.old.final_student
    shutil.rmtree(root / "pseudolabels" / labels.key[:2] / labels.key)
    found = Traced(f"{root}/students/{student.key[:2]}/{student.key}", None)
    lineage = trace(found)
    assert [step.name for step in lineage.steps] == ["final/student"]
    assert lineage.swept == (f"labels of final/student (pseudolabels {labels.key[:12]})",)
    assert told(found, "unlabeled-0").labels == (), "the pool is known by the record of the run"
    shutil.rmtree(root / "runs")
    with pytest.raises(ConfigError, match=r"--row unlabeled-0: no row .* none is left in the store"):
        told(found, "unlabeled-0")


def test_the_command_for_people(nights: Any, command: Command) -> None:
    code, out, _ = command("why", "tiny-classes@challenger", "--tracking", nights.uri)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "tiny-classes version 2 @challenger"
    assert "  commit: abc123" in lines
    assert "  Prefect run: prefect-run-1" in lines
    assert "    teacher: kind endpoint, model scripted, url ${RETORT_TEST_TEACHER}" in lines
    assert any(line.startswith("test set ") and line.endswith("/test.jsonl") for line in lines)
    assert max(map(len, lines)) < 240
    code, out, _ = command("why", "tiny-classes@challenger", "--tracking", nights.uri, "--row", "unlabeled-8")
    assert code == 0
    assert "  teacher of stage0/pseudolabels (try 0, sample 0" in out
    assert "set aside, " in out
    assert "  trained: final/student" in out.splitlines()


def test_the_command_for_machines(nights: Any, command: Command) -> None:
    options = ("why", "models:/tiny-classes/2", "--tracking", nights.uri, "--json")
    code, out, _ = command(*options)
    assert (code, json.loads(out)["key"]) == (0, nights.new.final_student.key)
    code, out, _ = command(*options, "--row", "unlabeled-0")
    assert (code, json.loads(out)["said"][0]["completions"][0]["text"]) == (0, "up")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tiny-classes@champion"], "'tiny-classes@champion' names no registered student"),
        (["models:/nobody/1"], "there is no version of 'nobody'"),
        (["models:/tiny-classes/1", "--row", "nobody"], "--row nobody: no row of the student's data has this id"),
        (
            ["models:/tiny-classes/1", "--row", "unlabeled-null"],
            "no student saw it, since it cannot be used: ",
        ),
        (["/nowhere/students/ab/" + "ab" * 32], "there is no student's artifact"),
    ],
)
def test_what_is_not_there_is_one_sentence(nights: Any, command: Command, arguments: list[str], sentence: str) -> None:
    code, out, err = command("why", *arguments, "--tracking", nights.uri)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
