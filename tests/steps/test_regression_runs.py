"""Whole runs on numbers: every kind of student; recorded, asked and several teachers; gate, report and prediction."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retort.artifacts.pseudolabels import Pseudolabels
from retort.artifacts.scores import Scores
from retort.artifacts.verdicts import GateVerdict
from retort.errors import ConfigError
from retort.metrics.format import with_interval
from retort.recipes import parse_config
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.recipe import MckdRecipe
from retort.report.mckd.terminal import render_terminal
from tiny_data import LETTERS, SIZES, TRAINING, write_lines
from whole_run import whole_run

Values = dict[str, Any]
WORDS = {"awful": 0.0, "dull": 0.25, "good": 0.75, "great": 1.0}
SCALE = {"kind": "regression", "low": 0, "high": 1}
MARKS = {"kind": "regression", "low": 0, "high": 4, "step": 1}


def number_row(role: str, number: int) -> dict[str, Any]:
    word = list(WORDS)[number % 4]
    film = number // 4 + {"labeled": 0, "unlabeled": 10, "test": 30}[role]
    text = f"the film {LETTERS[film % 26]}{LETTERS[film // 26]} was {word}"
    return {"id": f"{role}-{number}", "text": text, "label": WORDS[word], "mark": int(4 * WORDS[word])}


def recorded(path: Path, answers: dict[str, str]) -> dict[str, Any]:
    choices = {name: [{"message": {"content": said}, "finish_reason": "stop"}] for name, said in answers.items()}
    lines = [
        {"custom_id": name, "response": {"status_code": 200, "body": {"choices": one}}} for name, one in choices.items()
    ]
    write_lines(path, lines)
    return {"kind": "recorded", "completions": str(path), "min_success_ratio": 0.5}


@pytest.fixture
def numbers(tiny_encoder: Path, tmp_path: Path) -> Values:
    """The teacher is off by 0.1 in every third row; the first four rows get no label."""
    for role, size in SIZES.items():
        write_lines(tmp_path / f"{role}.jsonl", [number_row(role, number) for number in range(size)])
    pool = [number_row("unlabeled", number) for number in range(SIZES["unlabeled"])]
    said = {row["id"]: f"{min(1, row['label'] + (at % 3 == 0) / 10):.2f}" for at, row in enumerate(pool)}
    said |= {"unlabeled-0": "1.2", "unlabeled-1": "about a half", "unlabeled-2": "", "unlabeled-3": "-0.5"}
    said["unlabeled-4"] = f"Rating: {said['unlabeled-4']}"
    return {
        "name": "numbers",
        "problem": SCALE,
        "data": {role: str(tmp_path / f"{role}.jsonl") for role in SIZES},
        "teacher": recorded(tmp_path / "completions.jsonl", said),
        "student": {
            "kind": "sequence-classification",
            "model": str(tiny_encoder),
            "training": {**TRAINING, "epochs": 12, "min_updates": 100},
        },
        "method": {"stages": 2, "partitions": 2, "fine_tuning": {"kind": "never"}},
        "baselines": ["supervised"],
        "gate": {"slices": [{"name": "great ones", "pattern": "great", "floor": 0.4}]},
        "evaluation": {"resamples": 100},
        "store": {"root": str(tmp_path / "store")},
        "execution": {"device": "cpu"},
    }


def test_a_whole_run_on_a_continuous_scale(
    numbers: Values, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run = whole_run(numbers)
    labels = run.result.labels[0]
    reasons = {row["example_id"]: row["reason"] for row in Pseudolabels.open(run.store, labels).failures()}
    assert reasons == {
        "unlabeled-0": "out-of-range",
        "unlabeled-1": "not-a-number",
        "unlabeled-2": "empty",
        "unlabeled-3": "out-of-range",
    }
    assert labels.rows == 56
    teacher = run.summary.systems[0].scores
    assert list(teacher) == ["rmse", "mae", "pearson", "spearman"]
    assert teacher["rmse"].value > teacher["mae"].value > 0
    own = run.summary.final.scores["rmse"]
    assert own.low <= own.value <= own.high < 0.2
    soft = next(Pseudolabels.open(run.store, run.result.labels[1]).rows())
    assert len(soft["probabilities"]) == 11
    verdict = GateVerdict.open(run.store, run.result.verdict).verdict()
    assert verdict.slices[0].passed
    assert "at most 0.4 is allowed" in " ".join(verdict.reasons)
    assert "RMSE and MAE are in the unit of the labels, and less is better" in run.page
    assert "### Numbers, to the nearest of these" in run.page

    predictions = list(Scores.open(run.store, run.result.final_scores).predictions())
    code, out, err = command("predict", run.result.final_student.uri, numbers["data"]["test"], "--device", "cpu")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [one["number"] for one in answers] == [float(row["predicted"]) for row in predictions]
    assert all(one["label"] == f"{one['number']:.2f}" for one in answers[:4])
    assert (
        command("predict", run.result.final_student.uri, numbers["data"]["test"], "--out", tmp_path / "o.parquet")[0]
        == 0
    )


def test_ordinal_marks_with_kappa_deciding(numbers: Values, tmp_path: Path) -> None:
    pool = [number_row("unlabeled", number) for number in range(60)]
    said = {row["id"]: str(row["mark"]) for row in pool} | {
        "unlabeled-0": "2.5",
        "unlabeled-1": "5",
        "unlabeled-2": "2.0",
    }
    values = {
        **numbers,
        "problem": MARKS,
        "data": {**numbers["data"], "columns": {"label": "mark"}},
        "teacher": recorded(tmp_path / "marks.jsonl", said),
        "evaluation": {"resamples": 100, "metrics": ["quadratic_weighted_kappa", "rmse"]},
        "gate": {"slices": [{"name": "great", "pattern": "great", "metric": "rmse", "floor": 4}]},
    }
    run = whole_run(values)
    reasons = [row["reason"] for row in Pseudolabels.open(run.store, run.result.labels[0]).failures()]
    assert sorted(reasons) == ["between-steps", "out-of-range"]
    predicted = {row["predicted"] for row in Scores.open(run.store, run.result.final_scores).predictions()}
    assert predicted <= {"0", "1", "2", "3", "4"}
    assert run.summary.final.scores["quadratic_weighted_kappa"].value > 0.9
    assert "### Numbers\n" in run.page


def test_the_worse_of_two_labels_loses_by_its_error(numbers: Values, tmp_path: Path) -> None:
    """The gate refuses a student with a greater error than a baseline: trained on the teacher's upside-down numbers, it
    loses against the labeled rows."""
    pool = [number_row("unlabeled", number) for number in range(60)]
    upside_down = recorded(tmp_path / "wrong.jsonl", {row["id"]: f"{1 - row['label']:.2f}" for row in pool})
    run = whole_run({**numbers, "teacher": upside_down, "method": {**numbers["method"], "stages": 1}, "gate": {}})
    verdict = GateVerdict.open(run.store, run.result.verdict).verdict()
    assert verdict.outcome == "refused"
    assert "significantly worse, so use supervised instead" in verdict.refusals[0]
    assert "The final student scores" in run.summary.gained
    console = Console(width=120, file=StringIO(), record=True)
    console.print(render_terminal(run.summary, console.width))
    told = console.export_text()
    assert "scores in percent, errors in the unit of the labels" in told
    assert with_interval(run.summary.final.scores["rmse"]) in told
    (rival,) = run.summary.rivals
    assert rival.final_gain is not None
    assert rival.final_gain.high < 0
    errors = [row.scores["rmse"].value for row in (rival, run.summary.final)]
    assert rival.final_gain.value == pytest.approx(errors[0] - errors[1])

    champion = run.result.baselines["supervised"]
    gate = MckdRecipe().gate(run.config, run.result).model_copy(update={"reigning": (champion,), "rivals": ()})
    gate = gate.model_copy(update={"rival_names": ()})
    contest = GateVerdict.open(run.store, made_or_found(run.config, gate)).verdict().contest
    assert contest is not None
    assert (contest.champion_score, contest.score) == pytest.approx(errors)
    assert (contest.gain, contest.win_share) == (pytest.approx(errors[0] - errors[1]), 0.0)
    swapped = gate.model_copy(update={"reigning": gate.challenger, "challenger": gate.reigning})
    verdict = GateVerdict.open(run.store, made_or_found(run.config, swapped)).verdict()
    assert (verdict.outcome, verdict.contest and verdict.contest.win_share) == ("passed", 1.0)


@pytest.mark.parametrize(
    ("kind", "student"),
    [
        ("tiny_t5", {"kind": "seq2seq"}),
        ("tiny_causal", {"kind": "causal"}),
        ("tiny_causal", {"kind": "causal", "target": "text"}),
    ],
)
def test_students_that_write(numbers: Values, kind: str, student: Values, request: pytest.FixtureRequest) -> None:
    training = {**TRAINING, "epochs": 4}
    model = str(request.getfixturevalue(kind))
    method = {"stages": 2, "partitions": 3, "scheme": "disjoint", "fine_tuning": {"kind": "never"}}
    run = whole_run(
        {**numbers, "student": {**student, "model": model, "training": training}, "method": method, "baselines": []}
    )
    rows = list(Pseudolabels.open(run.store, run.result.labels[1]).rows())
    assert len(rows) == 60
    assert all(0 <= float(row["label"]) <= 1 for row in rows)
    has_classes = student.get("target") != "text"
    assert all((row["probabilities"] is not None) == has_classes for row in rows)
    assert all("+" in row["labeler"] for row in rows), "each row has two labels"
    predictions = list(Scores.open(run.store, run.result.final_scores).predictions())
    assert all(row["predicted"] is not None for row in predictions)


def test_an_asked_teacher_is_held_to_the_scale_and_its_samples_are_averaged(
    numbers: Values, endpoint_server: Any, tmp_path: Path
) -> None:
    def reply(body: dict[str, Any]) -> str:
        replies.append(body)
        return ["0.1", "0.2", "0.9"][len(replies) % 3]

    replies: list[dict[str, Any]] = []
    endpoint_server.reply, endpoint_server.most_choices = reply, 1
    teacher = {
        "kind": "endpoint",
        "url": endpoint_server.url,
        "model": "m",
        "constrained": True,
        "constraint_style": "json-schema",
        "concurrency": 1,
    }
    sampling = {"samples": 3, "sampling_temperature": 1.0}
    median = {**numbers, "problem": {**SCALE, "average": "median"}, "baselines": [], "gate": {}}
    method = {**numbers["method"], "stages": 1, "min_confidence": 0}
    run = whole_run({**median, "method": method, "teacher": {**teacher, "sampling": sampling}})
    assert {row["label"] for row in Pseudolabels.open(run.store, run.result.labels[0]).rows()} == {"0.2"}
    enum = replies[0]["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"]
    assert enum == [f"{n / 100:.2f}" for n in range(101)]
    messages = replies[0]["messages"]
    assert "Possible numbers: 0.00 to 1.00 in steps of 0.01" in messages[0]["content"]
    assert messages[2] == {"role": "assistant", "content": "0.25"}


def test_a_soft_teacher_gives_the_distribution_of_marks(numbers: Values, endpoint_server: Any) -> None:
    endpoint_server.alternatives = [("0", -3.0), ("1", -9.0), ("2", -0.7), ("3", -0.8), ("4", -5.0)]
    endpoint_server.reply = lambda body: "2"
    run = whole_run(
        {
            **numbers,
            "problem": MARKS,
            "data": {**numbers["data"], "columns": {"label": "mark"}},
            "teacher": {"kind": "endpoint", "url": endpoint_server.url, "model": "m", "labels": "soft"},
            "method": {**numbers["method"], "stages": 1},
            "baselines": [],
            "gate": {},
        }
    )
    row = next(Pseudolabels.open(run.store, run.result.labels[0]).rows())
    assert row["label"] in ("2", "3")
    assert 0 < row["confidence"] < 1
    assert len(row["probabilities"]) == 5


def test_several_teachers_are_averaged(numbers: Values, tmp_path: Path) -> None:
    pool = [number_row("unlabeled", number) for number in range(60)]
    members = [
        recorded(tmp_path / f"{shift}.jsonl", {row["id"]: f"{min(1, row['label'] + shift / 10):.2f}" for row in pool})
        for shift in (0, 1, 5)
    ]
    teacher = {"kind": "ensemble", "members": members}
    method = {**numbers["method"], "stages": 1}
    run = whole_run({**numbers, "teacher": teacher, "method": method, "baselines": [], "gate": {}})
    rows = {row["example_id"]: row for row in Pseudolabels.open(run.store, run.result.labels[0]).rows()}
    assert rows["unlabeled-0"]["label"] == "0.2"
    assert rows["unlabeled-0"]["confidence"] == pytest.approx(1 - 2 * 0.216, abs=0.001)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"student": {"kind": "token-classification", "model": "x"}}, "cannot learn 'regression'"),
        ({"evaluation": {"metrics": ["accuracy"]}}, "does not measure 'regression'"),
        ({"evaluation": {"metrics": ["quadratic_weighted_kappa"]}}, "measures ordinal labels; give problem.step"),
        ({"gate": {"slices": [{"name": "a", "label": "1", "floor": 1}]}}, None),
        ({"gate": {"slices": [{"name": "a", "pattern": "b", "metric": "pearson", "floor": 1.5}]}}, "from 0 to 1"),
        ({"gate": {"min_gain": 2}, "evaluation": {"metrics": ["mae"]}}, None),
        ({"gate": {"min_gain": 2}, "evaluation": {"metrics": ["spearman"]}}, "from -1 to 1"),
        (
            {"teacher": {"kind": "endpoint", "url": "http://x", "model": "m", "labels": "soft"}},
            "needs the probability of each number",
        ),
    ],
)
def test_what_does_not_fit_is_told(numbers: Values, changes: Values, sentence: str | None) -> None:
    if sentence is None:
        parse_config({**numbers, **changes}, "job.yaml")
        return
    with pytest.raises(ConfigError, match=sentence):
        parse_config({**numbers, **changes}, "job.yaml")
