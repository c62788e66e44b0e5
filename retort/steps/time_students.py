"""`time-students`: what scoring costs: parameters, bytes, latency of one row, throughput of many."""

from collections.abc import Sequence
from itertools import islice
from typing import Literal

from retort.config.soft_label import SoftLabelConfig
from retort.io.parquet import read_rows
from retort.records.base import ArtifactRef, Record, Step
from retort.steps.context import StepContext
from retort.steps.export_student import ONNX
from retort.steps.ingest import ROWS
from retort.steps.train_grid import fields_of
from retort.steps.train_student import MODEL
from retort.store import StepOutput

VERSION = 1
TIMES = "times.json"
MOST_ROWS = 256

Scorers = Literal["teacher", "tinybert", "student"]


class Times(Record):
    """Of one scorer, from text to probabilities, in fp32 on one CPU thread."""

    parameters: int
    """Embeddings included."""
    bytes: int
    """Of everything that is shipped but the tokenizer; of the student, of the whole folder."""
    latency_ms: float
    """For one row by itself: the median."""
    rows_per_second: float
    """In batches of 256, on one thread."""


class Costs(Record):
    machine: str
    timed_rows: int
    """Of the first test set; the median latency is of the first 200 of them."""
    scorers: dict[Scorers, Times]


def time_students(
    config: SoftLabelConfig,
    student: ArtifactRef,
    teacher: ArtifactRef | None,
    small: ArtifactRef | None,
    rows: ArtifactRef,
) -> Step:
    """All in one stage, one after another, so that they are timed on one machine."""
    lengths = {"tinybert": config.tinybert.training.max_length}
    if teacher is not None:
        lengths["teacher"] = config.teacher.training.max_length  # type: ignore[union-attr]
    given = {"student": student, "teacher": teacher, "tinybert": small}
    inputs = {name: (ref,) for name, ref in given.items() if ref is not None}
    return Step(
        name="final/times",
        verb="time-students",
        version=VERSION,
        kind="times",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "fields": config.data.columns.text,
            "max_length": {name: length for name, length in lengths.items() if name in inputs},
        },
        inputs={**inputs, "rows": (rows,)},
    )


def make_times(work: StepContext) -> StepOutput:
    import torch

    rows = read_rows(work.fetch("rows") / ROWS, ["text"])
    texts = [row["text"] for row in islice(rows, MOST_ROWS)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scorers: dict[Scorers, Times] = {"student": _student_times(work, texts)}
        for name in ("tinybert", "teacher"):
            if name in work.stage.inputs:
                scorers[name] = _encoder_times(work, name, texts)
    finally:
        torch.set_num_threads(threads)
    machine = str(torch.cpu.get_capabilities()["cpu_name"])
    costs = Costs(machine=machine, timed_rows=len(texts), scorers=scorers)
    (work.folder / TIMES).write_text(costs.model_dump_json(indent=1), encoding="utf-8")
    return StepOutput(rows=len(texts), metrics={f"{name}_ms": one.latency_ms for name, one in scorers.items()})


def _student_times(work: StepContext, texts: Sequence[str]) -> Times:
    """Of the exported folder, by the runtime that serves it."""
    from retort.students.tiny.scorer import Scorer, measure

    scorer, names = Scorer(work.fetch("student") / ONNX), tuple(work.stage.params["fields"])
    speed = measure(scorer.probabilities, [fields_of(text, names) for text in texts])
    manifest = work.store.find("students", work.stage.input("student").key)
    details = manifest.details if manifest else {}
    return Times(
        parameters=details["parameters"],
        bytes=details["bytes"],
        latency_ms=speed.latency_ms,
        rows_per_second=speed.rows_per_second,
    )


def _encoder_times(work: StepContext, role: Scorers, texts: Sequence[str]) -> Times:
    from retort.models.device import Device
    from retort.students.loading import load_student
    from retort.students.tiny.scorer import measure

    folder, device = work.fetch(role) / MODEL, Device("cpu", "fp32", 1)
    encoder = load_student(folder, "sequence-classification", work.stage.params["max_length"][role], work.problem)

    def score(rows: Sequence[Sequence[str]]) -> None:
        list(encoder.predict([text for (text,) in rows], device=device, total=len(rows)))

    speed = measure(score, [(text,) for text in texts])
    return Times(
        parameters=encoder.num_parameters,
        bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        latency_ms=speed.latency_ms,
        rows_per_second=speed.rows_per_second,
    )
