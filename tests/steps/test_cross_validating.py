"""The labeled set judges fine-tuning on itself: each row by a model that did not see it. The students are real."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from paper_method import PAPER
from retort.artifacts.scores import PREDICTIONS, Scores
from retort.artifacts.verdicts import Selection
from retort.config import MckdConfig
from retort.data.partitions import folds_of
from retort.errors import StageFailed
from retort.io.parquet import Row, read_rows
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.steps import (
    cross_validate,
    evaluate_student,
    fine_tune,
    gather_folds,
    ingest,
    select_fine_tuning,
)
from retort.recipes.mckd.steps import train_student as trained_on
from retort.records.base import ArtifactRef
from retort.records.mckd import Data
from retort.records.rank import Rank
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import Manifest
from retort.store.opening import open_store
from tiny_data import TRAINING, write_lines

ROWS, FOLDS = 12, 4
WORDS = ["yellow", "clocks", "creep", "time", "rome", "oslo", "paris", "cher", "queen", "abba", "kiel", "bonn"]
Build = Callable[..., MckdConfig]


@pytest.fixture(scope="module")
def build(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A config whose labels can be learned by heart only: nothing that two texts have in common tells the class."""
    folder = tmp_path_factory.mktemp("cross-validation")

    def row(role: str, number: int) -> Row:
        return {"id": f"{role}-{number}", "text": f"{WORDS[number]} {role}", "label": "up" if number < 6 else "down"}

    for role in ("labeled", "unlabeled", "test"):
        write_lines(folder / f"{role}.jsonl", [row(role, number) for number in range(ROWS)])

    def config(size: int = ROWS, **tuning: Any) -> MckdConfig:
        write_lines(folder / f"labeled-{size}.jsonl", [row("labeled", number) for number in range(size)])
        return MckdConfig.model_validate(
            {
                "name": "cross-validation",
                "problem": {"kind": "classification", "labels": ["down", "up"]},
                "data": {
                    "labeled": str(folder / f"labeled-{size}.jsonl"),
                    **{role: str(folder / f"{role}.jsonl") for role in ("unlabeled", "test")},
                },
                "teacher": {"kind": "finetuned"},
                "student": {"kind": "sequence-classification", "model": str(tiny_encoder), "training": TRAINING},
                "method": {**PAPER, "fine_tuning": {"folds": FOLDS, "epochs": 60, **tuning}},
                "evaluation": {"resamples": 100},
                "store": {"root": str(folder / "store")},
                "execution": {"device": "cpu"},
            }
        )

    return config


def made(config: MckdConfig, step: Step) -> ArtifactRef:
    return make(config, step, 0, lambda *_: None)


def data_of(config: MckdConfig) -> Data:
    labeled, unlabeled, test = (made_or_found(config, ingest(config, r)) for r in ("labeled", "unlabeled", "test"))
    return Data(labeled=labeled, unlabeled=unlabeled, test=test, judge=labeled)


def before(config: MckdConfig, data: Data) -> ArtifactRef:
    """A student that has learned next to nothing yet."""
    training = config.student.training.model_copy(update={"learning_rate": 1e-6, "epochs": 1})
    return made_or_found(config, trained_on(config, "stage1/student-0", data.unlabeled, training=training))


def manifest_of(config: MckdConfig, ref: ArtifactRef) -> Manifest:
    manifest = open_store(config.store).find(ref.kind, ref.key)
    assert manifest is not None
    return manifest


def predictions(config: MckdConfig, ref: ArtifactRef) -> list[Row]:
    return list(Scores.open(open_store(config.store), ref).predictions())


def right(rows: list[Row]) -> float:
    return sum(row["gold"] == row["predicted"] for row in rows) / len(rows)


def test_every_labeled_row_is_labeled_by_a_student_that_did_not_see_it(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows can be learned by heart; those of the other folds tell nothing."""
    config = build()
    data = data_of(config)
    start = before(config, data)
    learned, asked = watched(monkeypatch)
    judged = made(config, cross_validate(config, "fine-tuning/judge", start, data))
    rows = predictions(config, judged)
    assert [row["example_id"] for row in rows] == [f"labeled-{number}" for number in range(ROWS)]
    assert all(row["predicted"] in ("up", "down") and 0.5 <= row["confidence"] <= 1 for row in rows)

    texts = {row["text"] for row in rows}
    assert len(learned) == len(asked) == FOLDS
    for seen, held in zip(learned, asked, strict=True):
        assert seen.isdisjoint(held)
        assert seen | held == texts
    assert sorted(text for held in asked for text in held) == sorted(texts), "each row once"

    tuned = made(config, fine_tune(config, "final/student", start, data))
    own = predictions(config, made(config, evaluate_student(config, "own", tuned, data.labeled)))
    assert right(own) == 1.0, "with them in its training, it would have known them by heart"
    assert right(rows) < 0.8
    manifest = manifest_of(config, judged)
    assert (manifest.rows, manifest.metrics["accuracy"]) == (ROWS, pytest.approx(right(rows)))
    assert list(Scores.open(open_store(config.store), judged).scores()) == list(config.metrics)


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[set[str]], list[set[str]]]:
    """(the texts of each training, those of each prediction)."""
    from retort.students.classifier import Classifier

    learned, asked = list[set[str]](), list[set[str]]()
    train, predict = Classifier.train, Classifier.predict

    def training(student: Classifier, rows: Any, *arguments: Any, **options: Any) -> Any:
        learned.append({row.text for row in rows})
        return train(student, rows, *arguments, **options)

    def predicting(student: Classifier, texts: Any, **options: Any) -> Any:
        asked.append(set(texts := list(texts)))
        return predict(student, iter(texts), **options)

    monkeypatch.setattr(Classifier, "train", training)
    monkeypatch.setattr(Classifier, "predict", predicting)
    return learned, asked


def test_folds_side_by_side_give_the_same_scores(build: Build) -> None:
    config = build(epochs=4)
    data = data_of(config)
    start = before(config, data)
    whole = made(config, cross_validate(config, "fine-tuning/judge", start, data))
    steps = [cross_validate(config, f"fine-tuning/judge-{part}", start, data, part=part, parts=3) for part in range(3)]
    assert [step.siblings for step in steps] == [3, 3, 3]
    parts = tuple(made(config, step.model_copy(update={"siblings": 1})) for step in steps)  # as many threads as `whole`
    assert [part.rows for part in parts] == [6, 3, 3]
    gathered = made(config, gather_folds(config, "fine-tuning/judge", parts, data))
    assert predictions(config, gathered) == predictions(config, whole)
    scores = [Scores.open(open_store(config.store), ref).scores() for ref in (gathered, whole)]
    assert scores[0] == scores[1]
    assert gathered.metrics == whole.metrics


def test_each_fold_begins_with_the_same_student(build: Build) -> None:
    """With nothing to learn, the judgement is the student's own, whatever the folds."""
    config = build(epochs=0.01)
    config = config.model_copy(
        update={
            "student": config.student.model_copy(
                update={"training": config.student.training.model_copy(update={"learning_rate": 1e-12})}
            )
        }
    )
    data = data_of(config)
    start = before(build(), data)
    judged = predictions(config, made(config, cross_validate(config, "fine-tuning/judge", start, data)))
    own = predictions(config, made(config, evaluate_student(config, "judge", start, data.labeled)))
    assert [row["predicted"] for row in judged] == [row["predicted"] for row in own]
    assert [row["confidence"] for row in judged] == pytest.approx([row["confidence"] for row in own], abs=0.02)  # bf16


def test_what_generalizes_is_accepted_and_what_does_not_is_not(build: Build, tiny_classes: dict[str, Any]) -> None:
    """Texts whose words tell the class, against texts that can be learned by heart only."""
    by_heart = build()
    method = by_heart.method.model_dump(exclude_none=True)
    words = {**tiny_classes, "problem": by_heart.problem.model_dump(), "store": {"root": by_heart.store.root}}
    telling = MckdConfig.model_validate({**words, "method": method})
    data = data_of(telling)
    start = before(telling, data)
    judged = made(telling, cross_validate(telling, "fine-tuning/judge", start, data))
    scores = made(telling, evaluate_student(telling, "stage1/judge-0", start, data.judge))
    verdict = made(telling, select_fine_tuning(telling, "fine-tuning/selection", scores, judged))
    found = Selection.open(open_store(telling.store), verdict).verdict()
    assert right(predictions(telling, judged)) > 0.9 > right(predictions(telling, scores))
    assert (verdict.metrics["accepted"], found.accepted, found.n) == (1.0, True, 12)
    assert found.gain == pytest.approx(right(predictions(telling, judged)) - right(predictions(telling, scores)))
    back = made(telling, select_fine_tuning(telling, "fine-tuning/selection", judged, scores))
    assert back.metrics["accepted"] == 0.0


def test_several_gpus_judge_the_student_that_they_train_together(build: Build, tmp_path: Path) -> None:
    """Here two processes on the CPU. One alone could not judge a student that does not fit its GPU."""
    config = build(epochs=3)
    data = data_of(config)
    step = cross_validate(config, "fine-tuning/judge", before(config, data), data)
    assert step.resources.gpu == "several"
    spawn(judge_together, (config, step, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (json.loads((tmp_path / str(number)).read_text()) for number in (0, 1))
    assert first["processes"] == second["processes"] == [2] * FOLDS
    assert [row["example_id"] for row in first["rows"]] == [f"labeled-{number}" for number in range(ROWS)]
    assert first["rows"] == second["rows"], "both have the student that both have trained"


def judge_together(number: int, config: MckdConfig, step: Step, folder: Path) -> None:
    """One of the two; leaves its predictions and how many processes each training had."""
    from retort.students.classifier import Classifier
    from retort.students.data_parallel import num_ranks

    torch.set_num_threads(1)
    processes, train = list[int](), Classifier.train

    def training(*arguments: Any, **options: Any) -> Any:
        processes.append(num_ranks())
        return train(*arguments, **options)

    (own := folder / f"made-{number}").mkdir()
    rank = Rank(number, 2, str(folder / "rendezvous"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "train", training)
        step.run(StepContext(open_store(config.store), own, config.execution, rank=rank))
    rows = list(read_rows(own / PREDICTIONS))
    (folder / str(number)).write_text(json.dumps({"processes": processes, "rows": rows}))


def test_fewer_rows_than_folds_are_judged_one_by_one(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(size=3, epochs=1)
    data = data_of(config)
    _, asked = watched(monkeypatch)
    judged = made(config, cross_validate(config, "fine-tuning/judge", before(config, data), data))
    assert len(predictions(config, judged)) == 3
    assert list(map(len, asked)) == [1, 1, 1]
    none = made(config, cross_validate(config, "fine-tuning/judge", before(config, data), data, part=3, parts=4))
    assert (none.rows, none.metrics, len(asked)) == (0, {}, 3)
    assert len(folds_of(["a", "b", "c"], FOLDS, 0)) == 3


def test_a_single_row_cannot_judge_itself(build: Build, tmp_path: Path) -> None:
    config = build(size=1)
    data = data_of(config)
    step = cross_validate(config, "fine-tuning/judge", before(config, data), data)
    with pytest.raises(StageFailed, match=r"the labeled set has 1 row\(s\); at least 2 are needed to judge it"):
        step.run(StepContext(open_store(config.store), tmp_path, config.execution))


def test_its_key_holds_the_folds_the_epochs_and_the_start(build: Build) -> None:
    config = build()
    data = data_of(config)
    start = before(config, data)
    other = start.model_copy(update={"key": "f" * 64})
    keys = {
        cross_validate(one, "fine-tuning/judge", student, data).key
        for one, student in ((config, start), (build(folds=3), start), (build(epochs=7), start), (config, other))
    }
    keys |= {cross_validate(config, "any", start, data, part=part, parts=2).key for part in range(2)}
    assert len(keys) == 6
    assert cross_validate(build(confidence=0.9), "any", start, data).key in keys, "the verdict's business"
