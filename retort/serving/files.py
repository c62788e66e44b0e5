"""`retort predict`: reads a file of texts and writes a file of predictions, in bounded memory."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from uuid import uuid4

import pyarrow as pa
from pydantic import TypeAdapter

from retort.errors import ConfigError, RetortError
from retort.io.parquet import write_rows
from retort.io.terminal import say
from retort.problems import Problem
from retort.serving.addresses import FoundStudent, find_student
from retort.serving.answers import PredictionRecord, answer, answer_schema
from retort.serving.texts import BadRow, Fields, Tally, TextRow, read_texts

if TYPE_CHECKING:
    from retort.serving.student import LoadedStudent

WINDOW_ROWS = 8192
"""Rows labeled together, which prediction sorts by length."""
WINDOW_CHARACTERS = 2**20
"""Bounds memory if the rows are long."""
TELL_SECONDS = 30.0
"""How often progress is reported."""


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """The arguments of `retort predict`."""

    model: str
    source: str
    out: Path | None
    """A .jsonl or .parquet file; None writes JSON Lines to standard output."""
    tracking: str | None
    fields: Fields
    probabilities: bool
    device: str
    max_bad: float
    """The largest share of the rows, in [0, 1], that may be set aside."""


def predict_file(job: PredictionJob) -> Tally:
    """Label every row. Rows that cannot be labeled are counted and reported on standard error, one line each.

    Raises ConfigError or DataError before doing anything expensive, and RetortError if more than `max_bad` of the rows
    were set aside; `out` is not written then.
    """
    found, fields = prepared(job)
    rows = read_texts(job.source, fields)
    # Imports torch, which takes seconds; the errors above should not wait for it.
    from retort.serving.student import load_student

    student = load_student(found, job.device)
    tally, started = Tally(), time.monotonic()
    answers = _answers(student, rows, tally, job.probabilities)
    write_answers(job, student.problem, answers, tally)
    rate = tally.labeled / max(1e-9, time.monotonic() - started)
    tell(f"{tally}, by {student.name}; {rate:,.0f} rows/s on {student.device.name}")
    return tally


def dump_job(job: PredictionJob) -> str:
    return TypeAdapter(PredictionJob).dump_json(job).decode()


def load_job(text: str) -> PredictionJob:
    return TypeAdapter(PredictionJob).validate_json(text)


def prepared(job: PredictionJob) -> tuple[FoundStudent, Fields]:
    """The student, and the fields that it reads. Raises ConfigError for a job that cannot end well."""
    check_out(job.out)
    found = find_student(job.model, job.tracking)
    if job.probabilities:
        check_probabilities(found)
    params = found.manifest.fingerprint["params"]
    is_chat = params["problem"]["kind"] == "chat"
    return found, job.fields._replace(columns=tuple(params.get("fields", ())), are_conversations=is_chat)


def write_answers(job: PredictionJob, problem: Problem, answers: Iterable[PredictionRecord], tally: Tally) -> None:
    """Write them to `job.out` or to standard output, and check how many rows were set aside, see `predict_file`."""
    if job.out is None:
        write_lines(sys.stdout, answers)
        check_share(tally, job.max_bad)
        return
    with _replacing(job.out) as draft:
        _write(draft, answer_schema(problem, probabilities=job.probabilities), answers)
        check_share(tally, job.max_bad, f"; '{job.out}' is not written")


def check_out(out: Path | None) -> None:
    """Raises ConfigError for a file that could not be written at the end."""
    if out is None:
        return
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out '{out}': the name must end in .jsonl or .parquet")
    if out.is_dir():
        raise ConfigError(f"--out '{out}': is a folder; give a file's name")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out '{out}': '{out.parent}' is no folder of this machine that can be written to")


def check_probabilities(found: FoundStudent) -> None:
    """Raises ConfigError for a student whose output neither is a class nor starts with one.

    A tree results from many decisions and a text from many tokens, so there are no probabilities per class to report.
    """
    params = found.manifest.fingerprint["params"]
    kind = params["problem"]["kind"]
    what = {
        "text": "a free text",
        "chat": "an assistant's turn",
        "constituency": "a tree",
        "entities": "a list of entities",
    }.get(kind)
    if what is None and params.get("options", {}).get("target") == "text":
        lists = {"slots": "parse", "multi-label": "list of class names", "regression": "number"}
        written = lists.get(kind, "class name")
        what = f"a {written} that is written token by token"
    if what is not None:
        raise ConfigError(
            f"--probabilities: the answer of {found.name} is {what}, which has no classes to give the "
            "probabilities of; each answer has its confidence without the option (that of the whole, per token or "
            "decision), so leave it out"
        )


def check_share(tally: Tally, max_bad: float, consequence: str = "") -> None:
    if tally.bad_share > max_bad:
        raise RetortError(f"{tally}: {tally.bad_share:.1%}, more than --max-bad {max_bad:.1%}{consequence}")


def _answers(
    student: "LoadedStudent", rows: Iterator[TextRow | BadRow], tally: Tally, probabilities: bool
) -> Iterator[PredictionRecord]:
    last = time.monotonic()
    for window in windows(set_aside(rows, tally)):
        for row, prediction in zip(window, student.label([row.text for row in window]), strict=True):
            yield {"id": row.row_id, **answer(student.problem, row.text, prediction, probabilities=probabilities)}
        tally.labeled += len(window)
        if time.monotonic() - last > TELL_SECONDS:
            last = time.monotonic()
            tell(f"{tally} so far")


def set_aside(rows: Iterator[TextRow | BadRow], tally: Tally) -> Iterator[TextRow]:
    """The rows that can be labeled; the others are told and counted."""
    for row in rows:
        if isinstance(row, BadRow):
            tally.reasons[row.reason] += 1
            tell(f"{row.place}: {row.reason}: {row.detail}")
        else:
            yield row


def windows(rows: Iterable[TextRow]) -> Iterator[list[TextRow]]:
    """Split the rows into lists of WINDOW_ROWS, or fewer if the rows are long."""
    window: list[TextRow] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += len(row.text)
        if len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def write_lines(stream: TextIO, answers: Iterable[PredictionRecord]) -> None:
    for row in answers:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    stream.flush()


def _write(path: Path, schema: pa.Schema, answers: Iterable[PredictionRecord]) -> None:
    """Write in the format of the file's extension. Raises RetortError if that fails."""
    try:
        if path.suffix == ".parquet":
            write_rows(path, schema, answers)
            return
        with path.open("w", encoding="utf-8") as stream:
            write_lines(stream, answers)
    except OSError as error:
        raise RetortError(f"--out: cannot be written ({error.strerror or error})") from error


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary file next to `out` that replaces it if the block succeeds and is deleted otherwise."""
    draft = out.with_name(f".{out.stem}.{uuid4().hex}{out.suffix}")
    try:
        yield draft
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def tell(line: str) -> None:
    say(line, file=sys.stderr)
