"""`train-tiny`: every setting of an arm, each from the same seeds, trained side by side; the best on dev stays.

An arm is a loss. All have the same rows, vocabulary, initial weights and order of batches, and differ in nothing else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retort.config.soft_label import Arm, SoftLabelConfig
from retort.data.fields import split_fields
from retort.errors import StageFailed
from retort.io.parquet import read_rows
from retort.problems.base import Floats
from retort.records.base import ArtifactRef, Step
from retort.steps.context import StepContext
from retort.steps.gather_probabilities import aligned
from retort.steps.ingest import ROWS, read_gold
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.tiny.shape import TinyShape, TinyTraining, TrainedStudent
    from retort.students.tiny.vocabulary import Vocabulary

VERSION = 1
GRID, WEIGHTS = "grid.json", "students.safetensors"


def train_tiny(
    config: SoftLabelConfig,
    arm: Arm,
    train: ArtifactRef,
    dev: ArtifactRef,
    probabilities: ArtifactRef | None = None,
    pool: tuple[ArtifactRef, ArtifactRef] | None = None,
) -> Step:
    """`probabilities` of the training rows; `pool`: rows without gold, and the teacher's probabilities of them."""
    grid = config.grid
    inputs = {"train": (train,), "dev": (dev,)}
    if probabilities is not None:
        inputs["probabilities"] = (probabilities,)
    if pool is not None:
        inputs |= {"pool": pool[:1], "pool_probabilities": pool[1:]}
    return Step(
        name=f"{arm}/students",
        verb="train-tiny",
        version=VERSION,
        kind="grids",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "fields": config.data.columns.text,
            "student": config.student.model_dump(mode="json"),
            "settings": settings_of(config, arm),
            "label_smoothing": grid.label_smoothing if arm == "label-smoothing" else None,
            "seeds": [config.seed + index for index in range(grid.seeds)],
        },
        inputs=inputs,
    )


def settings_of(config: SoftLabelConfig, arm: Arm) -> list[dict[str, Any]]:
    """Fields of `Setting`, beside the seed, for each that the arm tries."""
    temperatures = config.grid.distillation_temperature
    both = [
        {"soft_weight": weight, "distillation_temperature": temperature}
        for weight in config.grid.lambdas
        for temperature in temperatures
    ]
    match arm:
        case "hard":
            return [{}]
        case "label-smoothing":
            return [{"soft_weight": 1.0, "hard": False}]
        case "soft-only":
            return [{"soft_weight": 1.0, "hard": False, "distillation_temperature": t} for t in temperatures]
        case "only-where-right":
            return [{**setting, "only_where_right": True} for setting in both]
    return both


def make_grid(work: StepContext) -> StepOutput:
    from retort.students.tiny.shape import Setting
    from retort.students.tiny.training import train_students

    params = work.stage.params
    shape, training = shape_of(params), training_of(params)
    train, dev, vocabulary = _rows(work, shape)
    settings = [Setting(seed=seed, **fields) for fields in params["settings"] for seed in params["seeds"]]
    students = train_students(
        train,
        dev,
        settings,
        vocabulary,
        shape,
        training,
        num_classes=len(work.problem.classes),
        progress=work.progress,
    )
    size = len(params["seeds"])
    groups = [students[start : start + size] for start in range(0, len(students), size)]
    tried = [_told(fields, group) for fields, group in zip(params["settings"], groups, strict=True)]
    # Most right on the dev rows, over all seeds; of equals, the one that is least surprised by them.
    best = max(range(len(tried)), key=lambda at: (round(tried[at]["dev_accuracy"], 9), -tried[at]["dev_loss"]))
    _write(work.folder, groups[best], vocabulary, {"tried": tried, "best": best, "seeds": params["seeds"]})
    return StepOutput(
        rows=len(train.gold),
        metrics={"dev_accuracy": tried[best]["dev_accuracy"], "dev_loss": tried[best]["dev_loss"]},
        counts={"students": len(students)},
        details={"setting": tried[best]["setting"], "parameters": num_parameters_of(groups[best][0].weights)},
    )


def _rows(work: StepContext, shape: "TinyShape") -> tuple[Any, Any, "Vocabulary"]:
    """Training and dev rows, encoded, and the vocabulary, which is read off the training texts alone."""
    from retort.students.tiny.shape import TinyRows
    from retort.students.tiny.vocabulary import Vocabulary

    examples, dev = read_gold(work, "train"), read_gold(work, "dev")
    ids = [example.example_id for example in examples]
    fields = [fields_of(example.text, shape.fields) for example in examples]
    gold = [_index(work, example.label) for example in examples]
    if "pool" in work.stage.inputs:
        pool = list(read_rows(work.fetch("pool") / ROWS, ["example_id", "text"]))
        fields += [fields_of(row["text"], shape.fields) for row in pool]
        gold += [-1] * len(pool)
        ids += [row["example_id"] for row in pool]
    vocabulary = Vocabulary.fit(fields, shape)
    probabilities = _probabilities(work, ids, np.array(gold))
    train = TinyRows(vocabulary.encode(fields), np.array(gold), probabilities)
    dev_texts = vocabulary.encode([fields_of(example.text, shape.fields) for example in dev])
    return train, TinyRows(dev_texts, np.array([_index(work, example.label) for example in dev])), vocabulary


def _probabilities(work: StepContext, ids: list[str], gold: Any) -> Floats | None:
    """`(rows, classes)` in the order of `ids`: the teacher's (NaN where it says nothing), or smoothed gold labels."""
    from retort.students.tiny.baselines import smoothed

    smoothing = work.stage.params["label_smoothing"]
    if smoothing is not None:
        targets: Floats = smoothed(gold, len(work.problem.classes), smoothing)
        return targets
    if "probabilities" not in work.stage.inputs:
        return None
    (found,) = aligned(work, work.stage.input("probabilities"), ids)
    if "pool_probabilities" in work.stage.inputs:
        (of_pool,) = aligned(work, work.stage.input("pool_probabilities"), ids)
        found = np.where(np.isnan(found), of_pool, found)
    if np.isnan(found).all():
        raise StageFailed(f"{work.stage.name}: the teacher has no probabilities for any training row")
    joined: Floats = found
    return joined


def _index(work: StepContext, label: str | None) -> int:
    return -1 if label is None else work.problem.classes.index(label)


def _told(fields: dict[str, Any], group: list["TrainedStudent"]) -> dict[str, Any]:
    """What a setting came to on the dev rows, over its seeds."""
    accuracies = [student.dev_accuracy for student in group]
    return {
        "setting": fields,
        "dev_accuracy": float(np.mean(accuracies)),
        "dev_accuracies": accuracies,
        "dev_loss": float(np.mean([student.dev_loss for student in group])),
        "epochs": [student.epoch for student in group],
    }


def _write(folder: Path, students: list["TrainedStudent"], vocabulary: "Vocabulary", grid: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    tensors = {
        f"{at}/{name}": np.ascontiguousarray(array)
        for at, student in enumerate(students)
        for name, array in student.weights.items()
    }
    save_file(tensors, folder / WEIGHTS)
    (folder / GRID).write_text(json.dumps({**grid, "vocabulary": asdict(vocabulary)}, ensure_ascii=False))


def read_students(folder: Path) -> tuple[dict[str, Any], "Vocabulary", list[dict[str, Any]]]:
    """(what was tried, vocabulary, weights of each seed) of a `grids` artifact."""
    from safetensors.numpy import load_file

    from retort.students.tiny.vocabulary import Vocabulary

    grid = json.loads((folder / GRID).read_text(encoding="utf-8"))
    kept = grid["vocabulary"]
    vocabulary = Vocabulary(**{**kept, "fields": tuple(kept["fields"]), "words": tuple(kept["words"])})
    weights: list[dict[str, Any]] = [{} for _ in grid["seeds"]]
    for path, array in load_file(folder / WEIGHTS).items():
        at, _, name = path.partition("/")
        weights[int(at)][name] = array
    return grid, vocabulary, weights


def fields_of(text: str, names: tuple[str, ...]) -> list[str]:
    """Of an example's text, in the order of the config's columns."""
    fields = split_fields(text)
    return [fields[name] for name in names]


def shape_of(params: dict[str, Any]) -> "TinyShape":
    from retort.students.tiny.shape import TinyShape

    sizes = {name: value for name, value in params["student"].items() if name not in ("kind", "training")}
    return TinyShape(fields=tuple(params["fields"]), **sizes)


def training_of(params: dict[str, Any]) -> "TinyTraining":
    from retort.students.tiny.shape import TinyTraining

    return TinyTraining(**params["student"]["training"])


def num_parameters_of(weights: Mapping[str, Any]) -> int:
    """Of one student, embeddings included."""
    return sum(int(np.size(array)) for array in weights.values())
