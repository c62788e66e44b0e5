"""A whole run of the soft-label recipe, inline: what it makes and never does, and what its student is then good for."""

import asyncio
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from any_step import AnyStep
from retort.artifacts.probabilities import PREDICTIONS, Probabilities
from retort.artifacts.pseudolabels import ROWS
from retort.artifacts.reports import Report
from retort.artifacts.scores import ANSWERS, ArmScores, SeedScores
from retort.commands.plan import plan
from retort.commands.report import copy_report
from retort.config.soft_label import SoftLabelConfig
from retort.errors import DataError, StageFailed
from retort.io.parquet import EXAMPLES, PROBABILITIES, read_rows, write_rows
from retort.recipes.execute import make
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.pipeline import distill
from retort.recipes.soft_label.steps import gather_labels, report, score, track, train_grid
from retort.records.base import ArtifactRef
from retort.records.soft_label import SoftLabelResult
from retort.report.soft_label.summary import SoftLabelSummary, table
from retort.report.soft_label.terminal import render_terminal
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput
from retort.store.opening import open_store

Done = tuple[Any, SoftLabelConfig, SoftLabelResult]
CLASSES = ("wrong", "half", "right")


def folder_of(config: SoftLabelConfig, ref: ArtifactRef) -> Path:
    return open_store(config.store).fetch(ref)


def scores_of(config: SoftLabelConfig, ref: ArtifactRef) -> ArmScores:
    return SeedScores.open(open_store(config.store), ref).scores()


def test_every_arm_is_scored_on_dev_and_test_over_its_seeds(done: Done) -> None:
    _, config, scored = done
    assert set(scored.scores) == {"teacher", *config.arms}
    for arm, by_rows in scored.scores.items():
        assert set(by_rows) >= {"dev", "unseen"}
        values = scores_of(config, by_rows["unseen"]).metrics["accuracy"].values
        assert len(values) == (1 if arm in ("teacher", "tfidf", "majority") else 2)
    assert set(scored.scores["teacher"]) == {"train", "dev", "unseen"}


def test_scores_are_those_of_scikit_learn(done: Done) -> None:
    _, config, scored = done
    ref = scored.scores["soft-grid"]["unseen"]
    told = scores_of(config, ref)
    answers = list(read_rows(folder_of(config, ref) / ANSWERS))
    for seed in (0, 1):
        rows = [row for row in answers if row["seed"] == seed]
        gold, said = [row["gold"] for row in rows], [row["predicted"] for row in rows]
        ranks = [[CLASSES.index(label) for label in labels] for labels in (gold, said)]
        expected = {
            "accuracy": accuracy_score(gold, said),
            "macro_f1": f1_score(gold, said, average="macro"),
            "quadratic_weighted_kappa": cohen_kappa_score(*ranks, weights="quadratic"),
        }
        assert {name: told.metrics[name].values[seed] for name in expected} == pytest.approx(expected)
    assert told.rows["accuracy"].value == pytest.approx(told.metrics["accuracy"].mean)
    assert sum(group.n for group in told.groups) == told.n == 40


def test_calibration_is_that_of_the_formulas(done: Done) -> None:
    """A teacher of 0.8 or 0.1 on every class that is right in 6 of 7 rows."""
    _, config, scored = done
    told = scores_of(config, scored.scores["teacher"]["unseen"])
    right = told.metrics["accuracy"].mean
    expected = {
        "ece": abs(right - 0.8),
        "nll": -right * np.log(0.8) - (1 - right) * np.log(0.1),
        "brier": right * (0.04 + 0.02) + (1 - right) * (0.64 + 0.81 + 0.01),
    }
    assert {name: told.metrics[name].mean for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_second_run_makes_nothing_and_a_new_lambda_only_what_it_touches(
    done: Done, run_again: Callable[[SoftLabelConfig], list[Step]]
) -> None:
    job, config, _ = done
    assert run_again(config) == []
    values = {**job.values, "grid": {**job.values["grid"], "lambda": [2, 4]}}
    changed = SoftLabelConfig.model_validate(values)
    kinds = {step.kind for step in run_again(changed)}
    assert kinds == {"train-tiny", "export-student", "predict", "score", "time-students"}
    assert {s.status for s in asyncio.run(plan(config)).stages if s.name not in ("report", "tracking")} == {"HIT"}


@pytest.fixture
def run_again() -> Callable[[SoftLabelConfig], list[Step]]:
    def again(config: SoftLabelConfig) -> list[Step]:
        store, made = open_store(config.store), list[Step]()

        async def do(step: Step) -> ArtifactRef:
            manifest = store.find(step.artifact_kind, step.key)
            if manifest is None:
                made.append(step)
                return make(config, step, 0, lambda *_: None)
            return store.ref(manifest)

        asyncio.run(distill(check(config), do))
        return made

    return again


def published(config: SoftLabelConfig, rows: list[dict[str, Any]], classes: tuple[str, ...], name: str) -> ArtifactRef:
    """Predictions as somebody else might have made them."""
    problem = {**config.problem.model_dump(mode="json"), "labels": list(classes)}
    step = AnyStep(name=name, values={"problem": problem, "made": repr(rows)}, made="predictions")
    folder = Path(config.store.root).parent / name
    folder.mkdir()
    write_rows(folder / PREDICTIONS, PROBABILITIES, rows)
    return open_store(config.store).publish(step, folder, StepOutput(rows=len(rows)), 0.0, "elsewhere")


def test_rows_out_of_step_and_classes_in_another_order_change_no_score(done: Done) -> None:
    """The notebook's fault: probabilities matched to rows by position."""
    _, config, scored = done
    gold = scored.tests["unseen"]
    rows = list(read_rows(folder_of(config, teacher_on(config, "unseen")) / PREDICTIONS))
    shuffled = [{**row, "probabilities": list(reversed(row["probabilities"]))} for row in rows]
    random.Random(0).shuffle(shuffled)
    refs = published(config, rows, CLASSES, "straight"), published(config, shuffled, CLASSES[::-1], "shuffled")
    straight, other = (
        scores_of(config, make(config, score(config, ref.key, (ref,), gold), 0, lambda *_: None)) for ref in refs
    )
    assert straight == other
    by_position = published(
        config, [{**row, "probabilities": row["probabilities"]} for row in shuffled], CLASSES, "wrong"
    )
    third = scores_of(config, make(config, score(config, "wrong", (by_position,), gold), 0, lambda *_: None))
    assert third.metrics["accuracy"].mean < straight.metrics["accuracy"].mean - 0.1


def teacher_on(config: SoftLabelConfig, role: str) -> ArtifactRef:
    store = open_store(config.store)
    manifest = store.latest(config.name, f"teacher/{role}")
    assert manifest is not None
    return store.ref(manifest)


def test_predictions_of_other_rows_are_refused(done: Done) -> None:
    _, config, scored = done
    rows = [{"example_id": "elsewhere", "seed": 0, "probabilities": [1.0, 0.0, 0.0]}]
    ref = published(config, rows, CLASSES, "elsewhere")
    with pytest.raises(DataError, match="no id of 40 rows is among those of 1 predictions"):
        make(config, score(config, "x", (ref,), scored.tests["unseen"]), 0, lambda *_: None)


def test_a_row_that_was_not_predicted_counts_as_wrong(done: Done) -> None:
    _, config, scored = done
    rows = list(read_rows(folder_of(config, teacher_on(config, "unseen")) / PREDICTIONS))
    ref = published(config, rows[:30], CLASSES, "partly")
    told = scores_of(config, make(config, score(config, "partly", (ref,), scored.tests["unseen"]), 0, lambda *_: None))
    whole = scores_of(config, scored.scores["teacher"]["unseen"])
    assert told.missing == 10
    assert told.metrics["accuracy"].mean <= whole.metrics["accuracy"].mean * 30 / 40 + 0.2
    assert told.metrics["accuracy"].mean == np.mean(
        [row["predicted"] == row["gold"] for row in answered(config, told, ref)]
    )


def answered(config: SoftLabelConfig, told: ArmScores, ref: ArtifactRef) -> list[dict[str, Any]]:
    manifest = open_store(config.store).latest(config.name, "partly")
    assert manifest is not None
    return list(read_rows(folder_of(config, open_store(config.store).ref(manifest)) / ANSWERS))


def test_two_teachers_for_one_row_are_refused(done: Done) -> None:
    _, config, scored = done
    ref = labeled(config, scored.dev, "labels-a"), labeled(config, scored.dev, "labels-b")
    with pytest.raises(StageFailed, match="two teachers have probabilities for"):
        make(config, gather_labels(config, "both", scored.dev, ref), 0, lambda *_: None)
    one = make(config, gather_labels(config, "one", scored.dev, ref[:1]), 0, lambda *_: None)
    assert one.rows == scored.dev.rows


def labeled(config: SoftLabelConfig, rows: ArtifactRef, name: str) -> ArtifactRef:
    from retort.io.parquet import PSEUDOLABELS

    values = {"problem": config.problem.model_dump(mode="json"), "name": name}
    step = AnyStep(name=name, values=values, made="pseudolabels")
    folder = Path(config.store.root).parent / name
    folder.mkdir()
    examples = read_rows(folder_of(config, rows) / ROWS, ["example_id", "text"])
    said = ({**row, "label": "half", "probabilities": np.float16([0.2, 0.5, 0.3])} for row in examples)
    count = write_rows(folder / ROWS, PSEUDOLABELS, said)
    return open_store(config.store).publish(step, folder, StepOutput(rows=count), 0.0, "elsewhere")


def test_an_example_meets_its_own_probabilities_in_training(done: Done, tmp_path: Path) -> None:
    """By id: the training rows' order and the probabilities' are different ones here."""
    _, config, scored = done
    ref = scored.train_probabilities
    rows = {row["example_id"]: row["probabilities"] for row in read_rows(folder_of(config, ref) / PREDICTIONS)}
    ids = sorted(rows, reverse=True)
    write_rows(tmp_path / "rows.parquet", EXAMPLES, ({"example_id": one} for one in [*ids, "another"]))
    (found,) = Probabilities.open(open_store(config.store), ref).beside(tmp_path / "rows.parquet", CLASSES)
    assert np.allclose(found[:-1], [rows[one] for one in ids])
    assert np.isnan(found[-1]).all()


def test_a_training_row_in_the_pool_teaches_its_label_there_and_its_probabilities_here(
    done: Done, tmp_path: Path
) -> None:
    """The pool's own probabilities of it come from a teacher that was trained on it."""
    _, config, scored = done
    assert scored.pool is not None
    rows = list(read_rows(folder_of(config, scored.train) / ROWS))
    pool = examples_of(config, [rows[7], {"example_id": "new", "text": rows[0]["text"]}, rows[3]], "shared")
    said = [{"example_id": one, "seed": 0, "probabilities": [0.1, 0.1, 0.8]} for one in ("new", rows[3]["example_id"])]
    step = train_grid(
        config,
        "with-pool",
        scored.train,
        scored.dev,
        scored.train_probabilities,
        (pool, published(config, said, CLASSES, "of-shared")),
    )
    context = StepContext(open_store(config.store), tmp_path, config.execution, 0, lambda *_: None)
    taught, _, _ = step._rows(context, CLASSES)
    known = [row["probabilities"] for row in read_rows(folder_of(config, scored.train_probabilities) / PREDICTIONS)]
    assert taught.probabilities is not None
    assert np.isnan(taught.probabilities).any(axis=1).nonzero()[0].tolist() == [3, 7]
    np.testing.assert_allclose(taught.probabilities[len(rows) :], [known[7], [0.1, 0.1, 0.8], known[3]], rtol=1e-6)
    assert (taught.gold[: len(rows)] >= 0).all()
    assert taught.gold[len(rows) :].tolist() == [-1] * 3


def examples_of(config: SoftLabelConfig, rows: list[dict[str, Any]], name: str) -> ArtifactRef:
    folder = Path(config.store.root).parent / name
    folder.mkdir()
    write_rows(folder / ROWS, EXAMPLES, rows)
    step = AnyStep(name=name, values={"made": name}, made="examples")
    return open_store(config.store).publish(step, folder, StepOutput(rows=len(rows)), 0.0, "elsewhere")


def test_the_report_says_what_the_scores_say(done: Done, tmp_path: Path) -> None:
    from rich.console import Console

    _, config, scored = done
    page = make(config, report(config, scored), 0, lambda *_: None)
    summary = Report.open(open_store(config.store), page).summary(SoftLabelSummary)
    markdown = (folder_of(config, page) / "report.md").read_text()
    html = (folder_of(config, page) / "report.html").read_text()
    for columns, *rows in ((t.columns, *t.rows) for t in [table(summary, "unseen")]):
        for row in rows:
            assert "| " + " | ".join(row) + " |" in markdown
            assert all(cell in html for cell in (*columns, *row))
    told = next(gain for gain in summary.gains if (gain.arm, gain.against) == ("soft-grid", "hard"))
    accuracy = [
        scores_of(config, scored.scores[arm]["unseen"]).metrics["accuracy"].values for arm in ("hard", "soft-grid")
    ]
    assert told.difference.values == pytest.approx(tuple(np.subtract(accuracy[1], accuracy[0])))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_terminal(summary, console.width))
    assert "soft-grid" in console.export_text()
    pictures = {one.key for one in Report.open(open_store(config.store), page).pictures()}
    assert {"scores-0", "timeline", "costs"} <= pictures
    assert any(key.startswith("confusions") for key in pictures)
    arms = {cost.name: cost for cost in summary.arm_costs}
    assert 0 < arms["soft-grid"].own_seconds < arms["soft-grid"].seconds, "it shares the rows and the teacher"
    assert summary.compute_seconds >= arms["soft-grid"].seconds
    assert "unseen" in summary.errors
    copied = copy_report(open_store(config.store), config, tmp_path / "copy")
    assert copied[0].name == "report.html"


def test_the_student_is_chosen_on_the_dev_rows_and_scores_as_it_did_there(done: Done, capsys: Any) -> None:
    """`retort predict` with the exported folder, on the dev rows: as right as its manifest says."""
    from retort.serving.files import PredictionJob, predict_file
    from retort.serving.texts import Fields

    job, config, scored = done
    details = open_store(config.store).find("students", scored.final_student.key).details  # type: ignore[union-attr]
    dev = [row for row in job.read("train.jsonl") if row["fold"] == 0]
    best = {arm: scores_of(config, scored.scores[arm]["dev"]).metrics["accuracy"].mean for arm in scored.grids}
    assert best[details["arm"]] == pytest.approx(max(best.values()))
    source = job.write("dev.jsonl", [{name: row[name] for name in ("id", "answer", "reference")} for row in dev])
    predict_file(PredictionJob(scored.final_student.uri, source, None, None, Fields("text", "id"), True, "auto", 0.0))
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["id"] for answer in answers] == [row["id"] for row in dev]
    right = np.mean([answer["label"] == row["label"] for answer, row in zip(answers, dev, strict=True)])
    assert right == pytest.approx(details["dev_accuracy"])
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4) for answer in answers)


def test_the_student_is_exported_with_its_cards(done: Done, tmp_path: Path) -> None:
    from retort.lineage.export import Export, export
    from retort.serving.texts import Fields

    _, _, scored = done
    folder = tmp_path / "out"
    export(Export(scored.final_student.uri, folder, False, False, None, Fields("text", "id"), None, None))
    assert {path.name for path in folder.iterdir()} == {"README.md", "DATA.md", "model.onnx", "vocabulary.json"}
    assert (folder / "README.md").read_text().startswith("# A tiny student\n")
    data = (folder / "DATA.md").read_text()
    assert "annotations_creators: [machine-generated]" in data
    assert re.search(r"^\| train \| \d+ \| \d+ \| none \| ", data, re.MULTILINE)
    assert re.search(r"^- teacher/train: \d+ rows labeled, ", data, re.MULTILINE)


def test_a_row_without_a_field_is_set_aside(done: Done, capsys: Any) -> None:
    from retort.serving.files import PredictionJob, predict_file
    from retort.serving.texts import Fields

    job, _, scored = done
    source = job.write(
        "odd.jsonl", [{"answer": "", "reference": "red"}, {"answer": "red"}, {"answer": 3, "reference": ""}]
    )
    tally = predict_file(
        PredictionJob(scored.final_student.uri, source, None, None, Fields("text", "id"), False, "auto", 1.0)
    )
    assert (tally.labeled, dict(tally.reasons)) == (1, {"no-text": 2})
    assert "'reference' is missing" in capsys.readouterr().err


def test_the_run_is_in_mlflow_once(done: Done, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from retort.config import TrackingConfig

    _, config, scored = done
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    config = config.model_copy(update={"tracking": tracking})
    page = make(config, report(config, scored), 0, lambda *_: None)
    step = track(config, scored, page, {})
    make(config, step, 0, lambda *_: None)
    open_store(config.store).discard(step.artifact_kind, step.key)
    make(config, step, 0, lambda *_: None)
    client = MlflowClient(tracking.uri, registry_uri=tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("colours").experiment_id])
    mean = scores_of(config, scored.scores["hard"]["unseen"]).metrics["accuracy"].mean
    assert run.data.metrics["hard/unseen/accuracy"] == pytest.approx(mean)
    assert run.data.params["grid.seeds"] == "2"
    version = client.get_model_version_by_alias("colours", "challenger")
    assert version.tags["retort.artifact"] == scored.final_student.uri
