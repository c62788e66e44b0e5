"""A small scoring job: answers about colours, a third of them right, a recorded teacher; and its whole run, inline."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.config.soft_label import SoftLabelConfig
from retort.recipes import load_config
from retort.recipes.execute import make
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.pipeline import distill
from retort.records.base import ArtifactRef
from retort.records.soft_label import SoftLabelResult
from retort.steps.base import Step
from retort.store.opening import open_store

Row = dict[str, Any]
CLASSES = ["right", "half", "wrong"]
COLOURS = "red green blue white black grey pink brown gold teal mauve navy lime plum rust sand".split()  # noqa: SIM905
SIZES = {"train": 120, "test": 40, "pool": 30}


class Job:
    """Files in `folder`; `values` is what the YAML file says."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values

    def write(self, name: str, rows: Sequence[Row]) -> str:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def read(self, name: str) -> list[Row]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def save(self) -> str:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.values), encoding="utf-8")
        return str(path)

    def config(self) -> SoftLabelConfig:
        config = load_config(self.save())
        assert isinstance(config, SoftLabelConfig)
        return config


def answers(role: str, size: int) -> list[Row]:
    """The reference names two colours; an answer is right with both, half right with one. One answer is empty."""
    choose = random.Random(role)
    return [one_answer(choose, role, number) for number in range(size)]


def one_answer(choose: random.Random, role: str, number: int) -> Row:
    first, second, other = choose.sample(COLOURS, 3)
    label = CLASSES[number % 3]
    said = {"right": f"{second} and {first}", "half": f"{first} {other}", "wrong": other}[label]
    row = {"id": f"{role}-{number}", "question": f"q{number % 4}", "answer": said, "reference": f"{first} {second}"}
    if number == 5:
        row["answer"] = ""
    return {**row, "label": label, "fold": number % 5}


def opinion(row: Row, names: Sequence[str] = CLASSES) -> Row:
    """A teacher that is sure of 0.8, and wrong in a seventh of the rows."""
    number = int(row["id"].rpartition("-")[2])
    right = CLASSES.index(row["label"])
    best = CLASSES[right if number % 7 else (right + 1) % 3]
    return {"id": row["id"], "probabilities": {name: 0.8 if name == best else 0.1 for name in names}}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return _new_job(tmp_path)


@pytest.fixture(scope="package")
def new_job() -> Callable[[Path], Job]:
    return _new_job


def _new_job(folder: Path) -> Job:
    data = {role: answers(role, size) for role, size in SIZES.items()}
    values = {
        "kind": "soft-label",
        "name": "colours",
        "problem": {"kind": "classification", "labels": ["wrong", "half", "right"], "ordered": True},
        "data": {
            "dev": {"folds": [0]},
            "columns": {"text": ["answer", "reference"], "group": "question"},
        },
        "student": {
            "kind": "tiny",
            "vocabulary_size": 100,
            "embedding_size": 8,
            "hidden_size": 8,
            "training": {"epochs": 8, "learning_rate": 0.02},
        },
        "grid": {"lambda": [1, 4], "distillation_temperature": [1, 2], "seeds": 2},
        "arms": [
            "hard",
            "soft-grid",
            "soft-only",
            "label-smoothing",
            "only-where-right",
            "with-pool",
            "tfidf",
            "majority",
        ],
        "resamples": 100,
        "execution": {"device": "cpu"},
        "store": {"root": str(folder / "store")},
    }
    job = Job(folder, values)
    values["data"] |= {"train": job.write("train.jsonl", data["train"])}
    values["data"] |= {"tests": {"unseen": job.write("test.jsonl", data["test"])}}
    values["data"] |= {"unlabeled": job.write("pool.jsonl", data["pool"])}
    said = [opinion(row) for rows in data.values() for row in rows]
    values["teacher"] = {"kind": "probabilities", "probabilities": job.write("said.jsonl", said)}
    return job


def inline(config: SoftLabelConfig, made: list[Step]) -> Callable[[Step], Any]:
    """A `do` that makes what the store lacks, in this process."""
    store = open_store(config.store)

    async def do(step: Step) -> ArtifactRef:
        manifest = store.find(step.artifact_kind, step.key)
        if manifest is not None:
            return store.ref(manifest)
        made.append(step)
        return make(config, step, 0, lambda *_: None)

    return do


def run(config: SoftLabelConfig) -> tuple[SoftLabelConfig, SoftLabelResult, list[Step]]:
    """(the resolved config, what came out, the steps that were made)."""
    config, made = check(config), list[Step]()
    return config, asyncio.run(distill(config, inline(config, made))), made


@pytest.fixture(scope="package")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, SoftLabelConfig, SoftLabelResult]:
    """A run that has ended. Do not change its files."""
    job = _new_job(tmp_path_factory.mktemp("colours"))
    config, scored, _ = run(job.config())
    return job, config, scored
