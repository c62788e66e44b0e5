"""How a teacher was asked, rebuilt from what its labels' manifest says."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from retort.artifacts.examples import GOLD_ROWS
from retort.config import Problem, Teacher
from retort.config.teachers import LlmTeacherConfig
from retort.io.parquet import read_rows, write_rows
from retort.problems import problem_for
from retort.records.base import Example, Record
from retort.store import Manifest, Store
from retort.store.ancestry import input_keys
from retort.teachers.demonstrations import choose_demonstrations
from retort.teachers.labeler import ASKED
from retort.teachers.ledger import Entry, Ledger
from retort.teachers.request_builder import Pending, RequestBuilder, request_builder

_TEACHER: TypeAdapter[Any] = TypeAdapter(Teacher)
_PROBLEM: TypeAdapter[Any] = TypeAdapter(Problem)


class Prompted(Record):
    """What every row of the pool was put behind."""

    digest: str
    """sha256 of all turns before the row."""
    instruction: str
    demonstrations: tuple[str, ...]
    """Ids of labelled rows, in the order shown."""


class RawCompletion(Record):
    """A completion as the ledger keeps it."""

    attempt: int
    """0, and from 1 where the row was asked about again."""
    sample: int
    text: str
    finish_reason: str | None
    asked_at: float | None = None
    """Unix seconds; None for a recorded one."""


def prompt_of(store: Store, labels: Manifest) -> Prompted | None:
    """Of the labels of a teacher that is asked; None where the labelled set was swept."""
    found = _questions(store, labels)
    if found is None:
        return None
    questions, labelled = found
    chosen = choose_demonstrations(labelled, questions.teacher.prompt.demonstrations, questions.teacher.prompt.choose)
    turns = json.dumps([asdict(turn) for turn in questions.everything], ensure_ascii=False)
    return Prompted(
        digest=hashlib.sha256(turns.encode()).hexdigest(),
        instruction=questions.everything[0].content,
        demonstrations=tuple(example.example_id for example in chosen),
    )


def completions_of(store: Store, labels: Manifest, example_id: str, text: str) -> Iterator[RawCompletion]:
    """What the ledger holds for a row of the pool or the labelled set, attempt by attempt; nothing where the labelled
    set, without which the prompt is not known, was swept."""
    found = _questions(store, labels)
    if found is None:
        return
    questions, _ = found
    ledger = Ledger(store, labels.fingerprint["params"]["identity"])
    pending, samples = Pending(0, example_id, text), questions.teacher.sampling.samples
    for attempt in range(1 + questions.teacher.ask_again.times):
        with tempfile.TemporaryDirectory(prefix="retort-lineage-") as folder:
            asked = Path(folder) / "asked.parquet"
            write_rows(asked, ASKED, questions.keys([pending], attempt))
            entries = list(ledger.join(asked))
        yield from (
            _raw(attempt, sample, entry) for sample, entry in zip(range(samples), entries, strict=True) if entry
        )


def _raw(attempt: int, sample: int, entry: Entry) -> RawCompletion:
    return RawCompletion(
        attempt=attempt,
        sample=sample,
        text=entry.text,
        finish_reason=entry.finish_reason,
        asked_at=entry.asked_at,
    )


def _questions(store: Store, labels: Manifest) -> tuple[RequestBuilder, list[Example]] | None:
    """How the teacher was asked, and the labelled set."""
    (key,) = input_keys(labels, "labeled")
    manifest = store.find("examples", key)
    if manifest is None:
        return None
    rows = read_rows(store.fetch(store.ref(manifest)) / GOLD_ROWS)
    labelled = [Example(row["example_id"], row["text"], row["label"]) for row in rows]
    problem = problem_for(_PROBLEM.validate_python(labels.fingerprint["params"]["problem"]))
    return request_builder(problem, _asked(labels.fingerprint["params"]), labelled), labelled


def _asked(params: dict[str, Any]) -> LlmTeacherConfig:
    """The part of the teacher's config that its labels depend on; for an engine of ours, `model` is the digest of the
    weights."""
    identity = {name: value for name, value in params["identity"].items() if value is not None}
    seed = {} if identity["kind"] == "endpoint" else {"seed": params["seed"]}
    shaping = {name: params[name] for name in LlmTeacherConfig.model_fields if name in params}
    teacher: LlmTeacherConfig = _TEACHER.validate_python({**shaping, **identity, **seed})
    return teacher
