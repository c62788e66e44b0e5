"""A teacher of the student's own kind: the mean of tiny students, as a file of probabilities for `scoring.py`."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retort.artifacts.examples import Examples
from retort.config.soft_label import SoftLabelConfig
from retort.data import read_rows_of
from retort.data.fields import fields_of
from retort.data.partitions import cell_of
from retort.problems import problem_for
from retort.problems.base import Floats
from retort.recipes.base import Do
from retort.recipes.soft_label.pipeline import ingest_rows
from retort.recipes.soft_label.steps import LABEL_SMOOTHING
from retort.records.base import ArtifactRef
from retort.steps.train_grid import shape_of, training_of
from retort.store.opening import open_store
from retort.students.tiny.baselines import smoothed
from retort.students.tiny.network import predict
from retort.students.tiny.shape import Setting, TinyRows
from retort.students.tiny.training import train_students
from retort.students.tiny.vocabulary import Vocabulary


def write_halves(config: SoftLabelConfig, tests: Sequence[str], folder: Path) -> list[str]:
    """Of these test sets, half of the answers become a pool without labels; the other half is what remains to test on.
    Returns the changes to the config."""
    pool: list[dict[str, Any]] = []
    changes = [f"data.unlabeled={folder / 'pool.jsonl'}"]
    for name in tests:
        rows = [dict(row) for _, row in read_rows_of(config.data.tests[name])]
        is_test = [cell_of(row["id"], 2, 0) == 1 for row in rows]
        pool += [without_label(row) for row, tested in zip(rows, is_test, strict=True) if not tested]
        kept = [row for row, tested in zip(rows, is_test, strict=True) if tested]
        changes.append(f"data.tests.{name}={write(folder / f'{name}.jsonl', kept)}")
    write(folder / "pool.jsonl", pool)
    return changes


def without_label(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("label")}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_ensemble(config: SoftLabelConfig, do: Do, path: Path, *, folds: int, seeds: int) -> list[str]:
    """Train `folds` x `seeds` tiny students on smoothed gold labels, each without one part of the training rows. A
    training row's probabilities are the mean of those that did not see it, any other row's the mean of all. Returns
    the changes to the config."""
    data = asyncio.run(ingest_rows(config.model_copy(update={"arms": ["with-pool"]}), do))
    classes, names = problem_for(config.problem).classes, tuple(config.data.columns.text)
    texts = {
        name: texts_of(config, ref) for name, ref in {"train": data.train, "pool": data.pool, **data.judged}.items()
    }
    fields = {role: [fields_of(text, names) for text in rows.values()] for role, rows in texts.items()}
    gold = {role: gold_of(config, ref, classes) for role, ref in (("train", data.train), ("dev", data.dev))}
    shape = shape_of(names, config.student)
    vocabulary = Vocabulary.fit(fields["train"], shape)
    encoded = {role: vocabulary.encode(rows) for role, rows in fields.items()}
    cells = np.array([cell_of(example_id, folds, config.seed) for example_id in texts["train"]])
    settings = [
        Setting(seed, soft_weight=1.0, hard=False, rows=tuple(np.flatnonzero(cells != fold).tolist()))
        for fold in range(folds)
        for seed in range(seeds)
    ]
    targets = smoothed(gold["train"], len(classes), LABEL_SMOOTHING)
    students = train_students(
        TinyRows(encoded["train"], gold["train"], targets),
        TinyRows(encoded["dev"], gold["dev"]),
        settings,
        vocabulary,
        shape,
        training_of(config.student),
        num_classes=len(classes),
    )
    lines = []
    for role, rows in encoded.items():
        found = np.stack([predict(student.weights, rows) for student in students])
        by_fold = found.reshape(folds, seeds, *found.shape[1:]).mean(1)
        mean = by_fold[cells, np.arange(len(cells))] if role == "train" else by_fold.mean(0)
        lines += [line(example_id, classes, p) for example_id, p in zip(texts[role], mean, strict=True)]
    write(path, lines)
    return [f"teacher={{kind: probabilities, probabilities: {path}}}"]


def line(example_id: str, classes: Sequence[str], probabilities: Floats) -> dict[str, Any]:
    return {"id": example_id, "probabilities": dict(zip(classes, probabilities.tolist(), strict=True))}


def texts_of(config: SoftLabelConfig, ref: ArtifactRef) -> dict[str, str]:
    return {row["example_id"]: row["text"] for row in Examples.open(open_store(config.store), ref).rows()}


def gold_of(config: SoftLabelConfig, ref: ArtifactRef, classes: Sequence[str]) -> Any:
    return np.array([classes.index(one.label or "") for one in Examples.open(open_store(config.store), ref).gold()])
