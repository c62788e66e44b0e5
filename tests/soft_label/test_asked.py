"""A teacher that is asked row by row, here a tiny causal model in this process: its soft labels reach the student."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from retort.artifacts.probabilities import PREDICTIONS
from retort.artifacts.pseudolabels import ROWS
from retort.config.soft_label import SoftLabelConfig
from retort.errors import ConfigError
from retort.io.parquet import read_rows
from retort.recipes.execute import make
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.pipeline import distill
from retort.records.base import ArtifactRef
from retort.records.soft_label import SoftLabelResult
from retort.steps.base import Step
from retort.store.opening import open_store

Steps = dict[str, Step]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of one layer with random weights, which reads bytes."""
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["answer: red\nreference: red blue\n"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(fast), "num_key_value_heads": 2, "initializer_range": 0.5, "eos_token_id": 1, **SIZES}
    AutoModelForCausalLM.from_config(Qwen2Config(**sizes)).save_pretrained(folder)
    return folder


def asking(job: Any, causal: Path) -> Any:
    teacher = {"kind": "transformers", "model": str(causal), "labels": "soft", "dtype": "float32", "batch_rows": 16}
    job.values |= {
        "teacher": teacher | {"prompt": {"demonstrations": 3}},
        "arms": ["soft-only", "with-pool"],
        "grid": {"lambda": [1], "distillation_temperature": [1], "seeds": 1},
    }
    return job


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, causal: Path, new_job: Any
) -> tuple[SoftLabelConfig, SoftLabelResult, Steps, list[str]]:
    config = check(asking(new_job(tmp_path_factory.mktemp("asked")), causal).config())
    store = open_store(config.store)
    steps: Steps = {}
    made: list[str] = []

    async def do(step: Step) -> ArtifactRef:
        steps[step.name] = step
        if manifest := store.find(step.artifact_kind, step.key):
            return store.ref(manifest)
        made.append(step.name)
        return make(config, step, 0, lambda *_: None)

    scored = asyncio.run(distill(config, do))
    return config, scored, steps, made


def test_every_role_has_its_probabilities_by_id(
    taught: tuple[SoftLabelConfig, SoftLabelResult, Steps, list[str]],
) -> None:
    config, scored, steps, _ = taught
    store = open_store(config.store)
    labels = {name: step for name, step in steps.items() if name.startswith("teacher/labels-")}
    assert set(labels) == {f"teacher/labels-{role}" for role in ("train", "dev", "unseen", "unlabeled")}
    assert {step.kind for step in labels.values()} == {"pseudolabel"}
    assert scored.teacher is None
    assert scored.pool_probabilities is not None
    for role, ref in (("train", scored.train_probabilities), ("unlabeled", scored.pool_probabilities)):
        manifest = store.find("pseudolabels", labels[f"teacher/labels-{role}"].key)
        assert manifest is not None
        said = {row["example_id"]: row["probabilities"] for row in read_rows(store.fetch(store.ref(manifest)) / ROWS)}
        kept = {row["example_id"]: row["probabilities"] for row in read_rows(store.fetch(ref) / PREDICTIONS)}
        assert kept.keys() == said.keys()
        assert len(kept) == {"train": scored.train.rows, "unlabeled": 30}[role]
        assert np.allclose([sum(values) for values in kept.values()], 1)
        assert len({tuple(values) for values in kept.values()}) > 1
        # float16 in the labels; there the classes stand in the problem's order, too
        assert all(np.allclose(kept[one], said[one], atol=2e-3) for one in kept)


def test_its_demonstrations_are_dev_rows(taught: tuple[SoftLabelConfig, SoftLabelResult, Steps, list[str]]) -> None:
    _, scored, steps, _ = taught
    for role in ("train", "dev", "unseen", "unlabeled"):
        assert steps[f"teacher/labels-{role}"].input("labeled") == scored.dev


def test_students_learn_from_it_and_it_is_scored_beside_them(
    taught: tuple[SoftLabelConfig, SoftLabelResult, Steps, list[str]],
) -> None:
    _, scored, steps, made = taught
    grids = steps["with-pool/students"].inputs
    assert grids["probabilities"] == (scored.train_probabilities,)
    assert grids["pool_probabilities"] == (scored.pool_probabilities,)
    assert set(scored.scores["teacher"]) == {"train", "dev", "unseen"}
    assert scored.final_student.kind == "students"
    assert "teacher/labels-train" in made


def test_hard_labels_are_refused(job: Any, causal: Path) -> None:
    asking(job, causal).values["teacher"]["labels"] = "hard"
    with pytest.raises(ConfigError, match="the soft-label recipe learns from probabilities; use labels: soft"):
        job.config()
