"""Students whose training ends by the labeled set, or by the distillation loss alone."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from retort.artifacts.students import HISTORY
from retort.config import MckdConfig
from retort.data.partitions import Cells, in_cells
from retort.errors import ConfigError, StageFailed
from retort.recipes import parse_config
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.steps import ingest, train_student
from retort.records.base import ArtifactRef
from retort.steps.train_student import held_out_places
from retort.store import Manifest
from retort.store.opening import open_store

Build = Callable[..., MckdConfig]


@pytest.fixture(scope="module")
def build(tiny_classes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Build:
    root = tmp_path_factory.mktemp("stopping") / "store"

    def config(stopping: dict[str, Any] | None = None, epochs: int = 12) -> MckdConfig:
        training = {**tiny_classes["student"]["training"], "epochs": epochs, "batch_tokens": 64}
        if stopping is not None:
            training["stopping"] = stopping
        return MckdConfig.model_validate(
            {
                **tiny_classes,
                "problem": {"kind": "classification", "labels": ["down", "up"]},
                "student": {**tiny_classes["student"], "training": training},
                "store": {"root": str(root)},
            }
        )

    return config


def manifest_of(config: MckdConfig, ref: ArtifactRef) -> Manifest:
    manifest = open_store(config.store).find(ref.kind, ref.key)
    assert manifest is not None
    return manifest


def history_of(config: MckdConfig, ref: ArtifactRef) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((open_store(config.store).fetch(ref) / HISTORY).read_text())
    return found


def pool(config: MckdConfig) -> ArtifactRef:
    """The pool with its gold labels, as labels to train on."""
    return made_or_found(config, ingest(config, "unlabeled"))


def test_by_the_labeled_set(build: Build) -> None:
    config = build({"by": "labeled", "patience": 1})
    labeled = made_or_found(config, ingest(config, "labeled"))
    step = train_student(config, "final/student", pool(config), labeled=labeled)
    assert step.fingerprint["inputs"]["stopping"] == [labeled.key]
    student = made_or_found(config, step)
    manifest, history = manifest_of(config, student), history_of(config, student)
    assert manifest.rows == 60, "every row of the pool is trained on"
    assert 0 < len(history["held_out_losses"]) <= 12
    assert manifest.metrics["held_out_loss"] == min(history["held_out_losses"])
    assert manifest.details["ended_by"] == history["ended_by"]
    assert manifest.details["kept_step"] == history["kept_step"]


def test_by_the_distillation_loss_no_gold_is_asked_for(build: Build) -> None:
    config = build({"by": "distillation_loss", "patience": 1, "share": 0.25})
    labeled = made_or_found(config, ingest(config, "labeled"))
    step = train_student(config, "final/student", pool(config), labeled=labeled)
    assert set(step.inputs) == {"labels"}
    student = made_or_found(config, step)
    assert manifest_of(config, student).rows == 45, "a quarter of 60 is held out"
    assert history_of(config, student)["held_out_losses"]


def test_a_model_that_is_trained_on_the_labeled_set_holds_a_share_of_it_out(build: Build) -> None:
    config = build({"by": "labeled", "share": 0.25})
    labeled = made_or_found(config, ingest(config, "labeled"))
    student = made_or_found(config, train_student(config, "teacher/student", labeled))
    assert manifest_of(config, student).rows == 9


def test_without_it_nothing_is_held_out_and_keys_stay(build: Build) -> None:
    config = build(epochs=1)
    step = train_student(
        config, "final/student", pool(config), labeled=made_or_found(config, ingest(config, "labeled"))
    )
    assert set(step.inputs) == {"labels"}
    assert not {"stopping", "distillation"} & set(step.params["training"])
    manifest = manifest_of(config, made_or_found(config, step))
    assert manifest.rows == 60
    assert "ended_by" not in manifest.details
    assert "held_out_loss" not in manifest.metrics


def test_students_of_two_stages_hold_the_same_rows_out() -> None:
    """They have the same seed and rows, and differ in their labels alone; those of other partitions do not matter."""
    places = held_out_places(60, 0.25, seed=1000)
    assert places == held_out_places(60, 0.25, seed=1000)
    assert places != held_out_places(60, 0.25, seed=0)
    assert len(places) == 15
    assert places < set(range(60))
    assert len(held_out_places(3, 0.01, seed=0)) == 1


def test_one_row_cannot_be_held_out_of_itself(build: Build) -> None:
    config = build({"by": "distillation_loss"})
    ids = [f"unlabeled-{n}" for n in range(60)]
    cells = [list(in_cells(iter([{"example_id": i} for i in ids]), Cells(of=64, seed=0, only=[c]))) for c in range(64)]
    (alone, *_) = [cell for cell, rows in enumerate(cells) if len(rows) == 1]
    with pytest.raises(StageFailed, match="stopping holds rows out, and there is one row only"):
        make(
            config,
            train_student(config, "s", pool(config), cells=Cells(of=64, seed=0, only=[alone])),
            0,
            lambda *_: None,
        )


@pytest.mark.parametrize(
    ("stopping", "sentence"),
    [
        ({"by": "test"}, r"student\.training\.stopping\.by = 'test': allowed: 'labeled' or 'distillation_loss'"),
        ({"by": "labeled", "patience": 0}, r"student\.training\.stopping\.patience = 0: must be at least 1"),
        ({"by": "labeled", "share": 0.9}, r"student\.training\.stopping\.share = 0\.9: must be at most 0\.5"),
    ],
)
def test_what_it_cannot_stop_by_is_told(tiny_classes: dict[str, Any], stopping: dict[str, Any], sentence: str) -> None:
    values = {**tiny_classes, "student": {**tiny_classes["student"], "training": {"stopping": stopping}}}
    with pytest.raises(ConfigError, match=sentence):
        parse_config(values, "test")


def test_a_finetuned_teacher_has_no_distillation_loss(tiny_classes: dict[str, Any]) -> None:
    teacher = {"kind": "finetuned", "training": {"stopping": {"by": "distillation_loss"}}}
    with pytest.raises(ConfigError, match=r"training\.stopping\.by 'distillation_loss' is for student\.training alone"):
        parse_config({**tiny_classes, "teacher": teacher}, "test")
