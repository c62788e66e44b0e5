"""`retort export`: a student as a folder for others, with its cards, and as ONNX graphs compared with it."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retort.errors import ConfigError
from retort.lineage.card import DATA_CARD, data_card, model_card
from retort.lineage.hub import make_repository, push
from retort.lineage.student import Traced, trace
from retort.records.result import StudentFingerprint
from retort.serving.addresses import FoundStudent, find_student
from retort.serving.texts import Fields, TextRow, read_texts

if TYPE_CHECKING:
    from retort.serving.student import LoadedStudent

ONNX, INT8, CARD = "model.onnx", "model.int8.onnx", "README.md"
MOST_COMPARED = 2000
"""Rows of `--check` that are labeled by each form of the student."""
_ENCODERS = ("token-classification", "sequence-classification")


class Export(NamedTuple):
    """The arguments of `retort export`."""

    model: str
    folder: Path
    onnx: bool
    int8: bool
    check: str | None
    """A file of texts on which the graphs are compared with the student."""
    fields: Fields
    tracking: str | None
    push: str | None
    """The hub's repository to push the folder to, ORGANIZATION/NAME."""


class Compared(NamedTuple):
    """One form of the student on the rows of `--check`, on this machine's CPU."""

    name: str
    megabytes: float
    rows: int
    equal: float
    """Share of the rows with the label that the student itself gives."""
    rows_per_second: float

    def __str__(self) -> str:
        size, speed = f"{self.megabytes:.1f} MB", f"{self.rows_per_second:,.0f} rows/s"
        return f"{self.name}: {size}, {speed}, {self.equal:.2%} of {self.rows:,} labels as the student's"


def export(request: Export) -> list[str]:
    """Write the folder; returns what was written and measured, as lines.

    Raises ConfigError for a folder that holds something, for ONNX of a student that is no encoder, and for a repository
    that may not be written, before anything is.
    """
    if request.folder.exists() and any(request.folder.iterdir()):
        raise ConfigError(f"{request.folder}: holds something already; give a new folder")
    found = find_student(request.model, request.tracking)
    kind = StudentFingerprint(found.manifest.fingerprint).kind
    if request.onnx and kind not in _ENCODERS:
        raise ConfigError(
            f"--onnx is for encoders ({', '.join(_ENCODERS)}), and this student is of kind '{kind}'"
            + (": its folder holds model.onnx already" if kind == "tiny" else "; vLLM and transformers load its folder")
        )
    if request.push:
        make_repository(request.push)
    from retort.artifacts.students import TrainedStudent

    source = TrainedStudent.open(found.store, found.store.ref(found.manifest)).model
    shutil.copytree(source, request.folder, dirs_exist_ok=True)
    compared = _with_graphs(request, found) if request.onnx else []
    _write_cards(request, found, kind, compared)
    names = ", ".join(sorted(path.name for path in request.folder.iterdir()))
    pushed = [f"pushed: {push(request.folder, request.push)}"] if request.push else []
    return [f"{request.folder}: {names}", *map(str, compared), *pushed]


def _write_cards(request: Export, found: FoundStudent, kind: str, compared: Sequence[Compared]) -> None:
    traced = Traced(request.model, request.tracking)
    lineage, params = trace(traced), found.manifest.fingerprint["params"]
    if kind != "tiny":  # that one has a card
        asked = _asked_lines(request.folder) if kind == "causal" else []
        card = model_card(found.name, params, lineage, [str(one) for one in compared], asked)
        (request.folder / CARD).write_text(card, encoding="utf-8")
    card = data_card(found.name, params["problem"], traced.data, lineage)
    (request.folder / DATA_CARD).write_text(card, encoding="utf-8")


def _asked_lines(folder: Path) -> list[str]:
    """How engines other than Retort, such as vLLM, ask a decoder."""
    notes = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    lines = [
        "A prompt is the text and then a line break (for a conversation, its chat template); decoding is greedy and "
        f"ends at the end token, after at most {notes['most']} tokens."
    ]
    if notes["classes"]:
        first, last = notes["first"], notes["first"] + len(notes["classes"]) - 1
        lines.append(
            f"It answers in tokens {first} to {last}, which the tokenizer does not know: `classes` in `student.json` "
            "names them in this order. Let no others be chosen (`allowed_token_ids` in vLLM)."
        )
    return lines


def _with_graphs(request: Export, found: FoundStudent) -> list[Compared]:
    """Write the graphs, and compare them with the student if there are texts to do so."""
    from retort.serving.student import load_student
    from retort.students.classifier import Classifier
    from retort.students.onnx_encoder import export_onnx, quantize_onnx, with_onnx

    texts = _texts(request)
    student = load_student(found, "cpu")
    assert isinstance(student.student, Classifier)
    encoder = student.student.encoder
    own, measured = _labels(student, texts)
    forms = [ONNX, *([INT8] if request.int8 else [])]
    export_onnx(encoder, request.folder / ONNX)
    if request.int8:
        quantize_onnx(request.folder / ONNX, request.folder / INT8)
    if not texts:
        return []
    compared = [Compared("the student", _megabytes(request.folder / "model.safetensors"), len(texts), 1.0, measured)]
    for name in forms:
        path = request.folder / name
        graph = Classifier(with_onnx(encoder, path), student.student.problem)
        labels, speed = _labels(replace(student, student=graph), texts)
        equal = sum(ours == theirs for ours, theirs in zip(own, labels, strict=True)) / len(texts)
        compared.append(Compared(name, _megabytes(path), len(texts), equal, speed))
    return compared


def _texts(request: Export) -> list[str]:
    if request.check is None:
        return []
    rows = (row for row in read_texts(request.check, request.fields) if isinstance(row, TextRow))
    return [row.text for _, row in zip(range(MOST_COMPARED), rows, strict=False)]


def _labels(student: "LoadedStudent", texts: Sequence[str]) -> tuple[list[str], float]:
    """The labels, and how many rows were labeled per second."""
    if not texts:
        return [], 0.0
    list(student.label(texts[:32]))  # the first batch pays for what is set up once
    started = time.perf_counter()
    labels = [one.label for one in student.label(texts)]
    return labels, len(texts) / (time.perf_counter() - started)


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6
