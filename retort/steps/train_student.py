"""`train-student`: a fresh student from its pretrained weights, or from the champion's, on some cells' labels."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from retort.config import EncoderConfig, GenerativeConfig, MckdConfig, Student, TrainingConfig, expand
from retort.data.partitions import cell_of
from retort.errors import ConfigError, StageFailed
from retort.io.parquet import Row, read_rows
from retort.models.weights import Weights, find_weights
from retort.records.base import ArtifactRef, Champion, Step
from retort.steps.context import StepContext
from retort.steps.ingest import GOLD_ROWS, ROWS, read_gold
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.base import Student as NewStudent
    from retort.students.base import TopTokens, TrainingRow

VERSION = 1
HISTORY = "history.json"
MODEL = "model"


def train_student(
    config: MckdConfig,
    name: str,
    labels: ArtifactRef,
    *,
    cells: tuple[int, ...] | None = None,
    index: int = 0,
    siblings: int = 1,
    training: TrainingConfig | None = None,
    soft: bool = False,
    start: ArtifactRef | None = None,
    labeled: ArtifactRef | None = None,
) -> Step:
    """One student. `cells` are those of the pool that it may see; None is all of it. `start` is a student whose
    weights it begins with; left out, `student.model`. `labeled` is the labelled set, by which its training may end;
    left out where that set itself is trained on.

    The seed comes from the method's seed and `index` alone: student i of one stage and of the next start from
    the same weights and differ only in their labels. `labels` may be pseudolabels or gold-labelled examples.
    """
    weights = find_weights(config.student, config.store.server)
    training = training or config.student.training
    by_labeled = training.stopping is not None and training.stopping.by == "labeled"
    assert labeled or labels.kind == "examples" or not by_labeled, "pseudolabels are no labelled set"
    judge = labeled if by_labeled else None
    return Step(
        name=name,
        verb="train-student",
        version=VERSION,
        kind="students",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "student": config.student.kind,
            "weights": weights.identity,
            "pretrained": config.student.weights == "pretrained",
            "training": training.model_dump(mode="json"),
            "seed": config.method.seed + 1000 * index,
            "cells": None if cells is None else partition_params(config, cells),
            "soft": soft,
            **_options(config),
        },
        inputs={
            "labels": (labels,),
            **({"start": (start,)} if start else {}),
            **({"stopping": (judge,)} if judge else {}),
        },
        knobs={
            "model": config.student.model,
            "revision": config.student.revision,
            "weights": config.student.weights,
            "endpoint_url": config.store.endpoint_url,
        },
        siblings=siblings,
    )


def _options(config: MckdConfig) -> dict[str, object]:
    """What this kind of student has beside what all have; nothing for an encoder, whose keys are older."""
    common = {*EncoderConfig.model_fields, "kind"}
    options = config.student.model_dump(mode="json", exclude=common)
    if isinstance(config.student, GenerativeConfig):
        options["target"] = config.student.form(has_classes=config.problem.kind != "text")
    return {"options": options} if options else {}


def start_from(stage: Step, reigning: Champion) -> ArtifactRef | None:
    """The student that `stage`, one without a start, is to begin with: the champion.

    If the champion was made of the same labels in the same way, then what the champion itself began with: the stage
    is the champion's own, is found in the store, and a night without news trains nothing.
    """
    inputs = dict(reigning.made_of["inputs"])
    own = inputs.pop("start", [])
    if {**reigning.made_of, "inputs": inputs} != stage.made_of:
        return reigning.student
    return ArtifactRef(uri=f"students/{own[0]}", kind="students", key=own[0]) if own else None


def partition_params(config: MckdConfig, cells: tuple[int, ...]) -> dict[str, object]:
    return {"of": config.method.partitions, "seed": config.method.seed, "only": list(cells)}


def in_cells(rows: Iterator[Row], cells: dict[str, object] | None) -> Iterator[Row]:
    """The rows whose cell is among `cells["only"]`; all of them if `cells` is None."""
    if cells is None:
        return rows
    of, seed, only = cells["of"], cells["seed"], set(cells["only"])  # type: ignore[call-overload]
    return (row for row in rows if cell_of(row["example_id"], of, seed) in only)  # type: ignore[arg-type]


def make_student(work: StepContext) -> StepOutput:
    import torch

    from retort.models.device import choose_device
    from retort.students.checkpoints import StoredCheckpoint
    from retort.students.loading import new_student

    params, warm = work.stage.params, "start" in work.stage.inputs
    config = _student(work.stage)
    device = choose_device(work.execution.device, config.training.precision, work.stage.siblings)
    torch.manual_seed(params["seed"])
    weights = _weights(work.stage, config)
    student = new_student(config, weights, pretrained=params["pretrained"] and not warm, problem=work.problem)
    same_head = warm and student.continue_from(work.fetch("start") / MODEL)
    top = _top_tokens(work, config, student)
    rows = [_training_row(work, row, top) for row in in_cells(_labelled_rows(work), params["cells"])]
    if not rows:
        where = "the pool" if params["cells"] is None else "its cells of the pool; lower method.partitions"
        raise StageFailed(f"{work.stage.name}: there is no labelled row to train on in {where}")
    rows, held_out = _held_out(work, config, rows)
    taught = student.train(
        rows,
        config.training,
        seed=params["seed"],
        device=device,
        micro_batches=2**work.attempt,
        checkpoint=StoredCheckpoint(work.store, work.stage.key),
        progress=work.progress,
        held_out=held_out,
    )
    student.save(work.folder / MODEL)
    history = taught.history
    (work.folder / HISTORY).write_text(json.dumps(asdict(history)))
    return StepOutput(
        rows=len(rows),
        counts=taught.counts,
        metrics={
            "loss": history.losses[-1],
            "examples_per_second": history.examples_per_second,
            **({"held_out_loss": min(history.held_out_losses)} if held_out else {}),
        },
        details={
            **device.describe(),
            "parameters": student.num_parameters,
            "training_seconds": history.seconds,
            "tokens": history.tokens,
            "padding_share": history.padding_share,
            **({"start": _WARM[same_head]} if warm else {}),
            **({"ended_by": history.ended_by, "kept_step": history.kept_step} if held_out else {}),
        },
    )


_WARM = {True: "the champion's weights", False: "the champion's weights with a new head, for the class names differ"}


def _student(stage: Step) -> Student:
    """The config's student, as far as the stage needs it, with the training that this stage is for."""
    params, knobs = stage.params, stage.knobs
    named = {name: knobs[name] for name in ("model", "revision", "weights")}
    options = params.get("options", {})
    return _STUDENT.validate_python({"kind": params["student"], **named, **options, "training": params["training"]})


_STUDENT: TypeAdapter[Student] = TypeAdapter(Student)


def _weights(stage: Step, student: Student) -> Weights:
    """Found anew, since the worker may be another machine than the one that planned the stage.

    Raises ConfigError where they are not those that the stage's key was made of.
    """
    model, endpoint_url = student.model, stage.knobs["endpoint_url"]
    found = find_weights(student, endpoint_url and expand(endpoint_url))
    if found.identity != stage.params["weights"]:
        raise ConfigError(
            f"student.model = '{model}': what {stage.name} finds there is not what the run began with; the files were "
            "changed since, or this worker has others: give all machines the same, or an s3:// address"
        )
    return found


def _labelled_rows(work: StepContext) -> Iterator[Row]:
    folder = work.fetch("labels")
    gold = folder / GOLD_ROWS
    return read_rows(gold if gold.exists() else folder / ROWS)


def _held_out(
    work: StepContext, config: Student, rows: "list[TrainingRow]"
) -> "tuple[list[TrainingRow], list[TrainingRow]]":
    """(rows to train on, rows to end by). Which are held out rests on the student's seed and the rows' order, so that
    students of one stage and of the next differ only in their labels."""
    from retort.students.base import TrainingRow

    stopping = config.training.stopping
    if stopping is None:
        return rows, []
    if "stopping" in work.stage.inputs:
        return rows, [TrainingRow(one.text, str(one.label)) for one in read_gold(work, "stopping")]
    if len(rows) < 2:
        raise StageFailed(f"{work.stage.name}: stopping holds rows out, and there is one row only; train without it")
    held = held_out_places(len(rows), stopping.share, work.stage.params["seed"])
    return [row for at, row in enumerate(rows) if at not in held], [rows[at] for at in sorted(held)]


def held_out_places(num_rows: int, share: float, seed: int) -> set[int]:
    """Of `num_rows` rows; at least one."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return set(order[: max(1, round(share * num_rows))].tolist())


def _top_tokens(work: StepContext, config: Student, student: "NewStudent") -> "dict[str, TopTokens]":
    """What the teacher could have written, by example_id; only labels that it wrote itself have it.

    Raises ConfigError where the teacher's tokenizer is not the student's.
    """
    from retort.students.base import TopTokens
    from retort.students.generative import GenerativeStudent
    from retort.teachers.top_logprobs import TEACHER_TOKENS, read_teacher_tokens
    from retort.teachers.vllm.engine.toplogprobs import tokenizer_identity

    if config.training.distillation is None or not isinstance(student, GenerativeStudent):
        return {}
    file = work.fetch("labels") / TEACHER_TOKENS
    if not file.exists():
        return {}
    found = read_teacher_tokens(file, tokenizer_identity(student.tokenizer), student.num_logits)
    seen = in_cells(({"example_id": one.example_id, "top": one} for one in found), work.stage.params["cells"])
    return {row["example_id"]: TopTokens(row["top"].token_ids, row["top"].ids, row["top"].logprobs) for row in seen}


def _training_row(work: StepContext, row: Row, top: "Mapping[str, TopTokens]") -> "TrainingRow":
    """With probabilities `(units, classes)` in a soft stage, one-hot where a row has none."""
    from retort.students.base import TrainingRow

    classes = len(work.problem.classes)
    if not work.stage.params["soft"]:
        return TrainingRow(row["text"], row["label"], top=top.get(row["example_id"]))
    if row.get("probabilities") is None:
        one_hot = np.eye(classes, dtype=np.float32)[work.problem.targets(row["text"], row["label"])]
        return TrainingRow(row["text"], row["label"], one_hot)
    probabilities: NDArray[np.float32] = np.asarray(row["probabilities"], dtype=np.float32).reshape(-1, classes)
    probabilities /= probabilities.sum(-1, keepdims=True)
    return TrainingRow(row["text"], row["label"], probabilities)
