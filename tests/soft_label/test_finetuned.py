"""A teacher that is fine-tuned here: each training row's probabilities come from one that did not see it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.probabilities import PREDICTIONS
from retort.artifacts.pseudolabels import ROWS
from retort.artifacts.times import Times
from retort.config.soft_label import SoftLabelConfig
from retort.data.partitions import cell_of
from retort.io.parquet import read_rows
from retort.recipes.execute import make
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.pipeline import distill
from retort.records.base import ArtifactRef
from retort.records.soft_label import SoftLabelResult
from retort.steps.base import Step
from retort.store.opening import open_store

TRAINING = {"epochs": 1, "batch_tokens": 512, "max_length": 32, "freeze_embeddings": False, "precision": "fp32"}


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, new_job: Any
) -> tuple[SoftLabelConfig, SoftLabelResult, dict[str, Step]]:
    job = new_job(tmp_path_factory.mktemp("taught"))
    job.values |= {
        "teacher": {"kind": "finetuned", "model": str(tiny_encoder), "folds": 3, "training": TRAINING},
        "tinybert": {"model": str(tiny_encoder), "layers": 1, "seeds": 2, "training": TRAINING},
        "arms": ["soft-grid", "with-pool", "tinybert"],
        "grid": {"lambda": [1], "distillation_temperature": [1], "seeds": 1},
    }
    config = check(job.config())
    steps: dict[str, Step] = {}

    async def do(stage: Step) -> ArtifactRef:
        steps[stage.name] = stage
        return make(config, stage, 0, lambda *_: None)

    return config, asyncio.run(distill(config, do)), steps


def test_who_labels_a_training_row_was_not_trained_on_it(
    taught: tuple[SoftLabelConfig, SoftLabelResult, dict[str, Step]],
) -> None:
    config, scored, steps = taught
    store = open_store(config.store)
    labeled: list[str] = []
    for part in range(3):
        trained_on = set(steps[f"teacher/part-{part}"].params["cells"]["only"])
        labels = steps[f"teacher/labels-{part}"]
        assert labels.input("student").key == steps[f"teacher/part-{part}"].key
        manifest = store.find(labels.artifact_kind, labels.key)
        assert manifest is not None
        ids = [row["example_id"] for row in read_rows(store.fetch(store.ref(manifest)) / ROWS, ["example_id"])]
        assert {cell_of(one, 3, config.seed) for one in ids} == {part}
        assert part not in trained_on
        labeled += ids
    rows = list(read_rows(store.fetch(scored.train_probabilities) / PREDICTIONS))
    assert sorted(labeled) == sorted(row["example_id"] for row in rows)
    assert len(labeled) == scored.train.rows == 96


def test_the_small_encoder_has_fewer_layers_and_every_seed_is_scored(
    taught: tuple[SoftLabelConfig, SoftLabelResult, dict[str, Step]],
) -> None:
    config, scored, _ = taught
    store = open_store(config.store)
    parameters = [store.find("students", ref.key).details["parameters"] for ref in (*scored.small, scored.teacher)]  # type: ignore[union-attr]
    assert parameters[0] == parameters[1] < parameters[2]
    costs = Times.open(store, scored.times).costs()
    assert [costs.scorers[name].parameters for name in ("tinybert", "teacher")] == parameters[1:]  # type: ignore[index]
    assert all(one.latency_ms > 0 and one.rows_per_second > 0 and one.bytes > 0 for one in costs.scorers.values())
