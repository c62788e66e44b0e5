"""Reconstructs an LLM teacher's prompts from the manifest of its labels."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from retort.artifacts.examples import Examples
from retort.config import Problem, Teacher
from retort.config.teachers import LlmTeacherConfig
from retort.io.parquet import write_rows
from retort.io.scratch import scratch
from retort.problems import problem_for
from retort.records.base import Record
from retort.store import Manifest, Store
from retort.store.ancestry import input_keys
from retort.teachers.labeler import ASKED
from retort.teachers.ledger import Entry, Ledger
from retort.teachers.request_builder import Pending, RequestBuilder, request_builder

_TEACHER: TypeAdapter[Any] = TypeAdapter(Teacher)
_PROBLEM: TypeAdapter[Any] = TypeAdapter(Problem)


class Prompted(Record):
    """The part of the prompt that all rows of the pool share."""

    digest: str
    """sha256 of all turns before the row."""
    instruction: str
    demonstrations: tuple[str, ...]
    """Ids of labeled rows, in the order shown."""


class RawCompletion(Record):
    """A completion as stored in the ledger."""

    attempt: int
    """0 for the first attempt, 1 and up for later ones."""
    sample: int
    text: str
    finish_reason: str | None
    asked_at: float | None = None
    """In Unix seconds; None for a recorded completion."""


def prompt_of(store: Store, labels: Manifest) -> Prompted | None:
    """The prompt behind an LLM teacher's labels; None if the labeled set was swept."""
    builder = _request_builder(store, labels)
    if builder is None:
        return None
    turns = json.dumps([asdict(turn) for turn in builder.everything], ensure_ascii=False)
    return Prompted(
        digest=hashlib.sha256(turns.encode()).hexdigest(),
        instruction=builder.everything[0].content,
        demonstrations=tuple(example_id for example_id, _ in builder.excluding),
    )


def completions_of(store: Store, labels: Manifest, example_id: str, text: str) -> Iterator[RawCompletion]:
    """The ledger's completions for a row of the pool or the labeled set, attempt by attempt.

    Yields nothing if the labeled set was swept, since the prompt is then unknown.
    """
    builder = _request_builder(store, labels)
    if builder is None:
        return
    ledger = Ledger(store, labels.fingerprint["params"]["identity"])
    pending, samples = Pending(0, example_id, text), builder.teacher.sampling.samples
    for attempt in range(builder.attempts):
        with scratch("lineage") as folder:
            keys = folder / "asked.parquet"
            write_rows(keys, ASKED, builder.keys([pending], attempt))
            entries = list(ledger.join(keys))
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


def _request_builder(store: Store, labels: Manifest) -> RequestBuilder | None:
    """The builder of the teacher's requests; None if the labeled set was swept."""
    (key,) = input_keys(labels, "labeled")
    manifest = store.find("examples", key)
    if manifest is None:
        return None
    labeled = Examples(manifest, store.fetch(store.ref(manifest))).gold()
    problem = problem_for(_PROBLEM.validate_python(labels.fingerprint["params"]["problem"]))
    return request_builder(problem, _teacher_config(labels.fingerprint["params"]), labeled)


def _teacher_config(params: dict[str, Any]) -> LlmTeacherConfig:
    """The part of the teacher's config that its labels depend on. For our own engines, `model` is the digest of the
    weights."""
    identity = {name: value for name, value in params["identity"].items() if value is not None}
    seed = {} if identity["kind"] == "endpoint" else {"seed": params["seed"]}
    shaping = {name: params[name] for name in LlmTeacherConfig.model_fields if name in params}
    teacher: LlmTeacherConfig = _TEACHER.validate_python({**shaping, **identity, **seed})
    return teacher
