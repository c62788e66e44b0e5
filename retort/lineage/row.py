"""A row's history: what the teacher wrote, its label after each stage, and which students were trained on it."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from retort.artifacts.examples import GOLD_ROWS, ROWS, SET_ASIDE_ROWS
from retort.artifacts.probabilities import PREDICTIONS, Probabilities
from retort.artifacts.pseudolabels import FAILED_ROWS
from retort.data import fingerprint
from retort.data.completions import BadLine, read_completions
from retort.data.partitions import Cells, in_cells
from retort.errors import ConfigError, UserError
from retort.io.parquet import Row
from retort.lineage.student import Traced
from retort.lineage.teacher import RawCompletion, completions_of, prompt_of
from retort.records.base import Record
from retort.store import Manifest
from retort.store.ancestry import input_keys

ROWS_LEARNED = {"students": ("labels",), "grids": ("train", "pool")}
"""By kind of artifact: the roles of the inputs whose rows its students are trained on."""


class RowLabel(Record):
    """A row's label at a step."""

    stage: str
    """`stage0/pseudolabels`: the teacher's; `stage1/cross-labels-0`: a student's vote; `stage1/pseudolabels`."""
    label: str
    confidence: float
    labeler: str


class SetAside(Record):
    """Why a row got no label."""

    stage: str
    reason: str
    detail: str
    raw: str


class TeacherOutput(Record):
    """What a teacher wrote for a row."""

    stage: str
    """The name of the teacher's step."""
    completions: tuple[RawCompletion, ...]
    """Empty, with a `note`, if they cannot be found."""
    note: str | None = None


class RowHistory(Record):
    """How a row contributed to a student."""

    example_id: str
    text: str
    sets: tuple[str, ...]
    """The sets that contain it: unlabeled (the pool), labeled, test, dev."""
    unknown_sets: tuple[str, ...]
    """Sets that cannot be searched, since they were swept or the run that used them is unknown."""
    gold: str | None
    demonstrated_by: tuple[str, ...]
    """Steps whose teacher was shown the row with its gold label."""
    said: tuple[TeacherOutput, ...]
    labels: tuple[RowLabel, ...]
    """In the order of execution."""
    set_aside: tuple[SetAside, ...]
    trained: tuple[str, ...]
    """Students that were trained on it."""


def history(traced: Traced, example_id: str) -> RowHistory:
    """Raises ConfigError if neither the student's data sets nor its run's test set have a row with this id."""
    looker = _Looker(traced, example_id)
    found = {role: row for role, manifest in traced.data.items() if (row := looker.row(manifest, ROWS))}
    if not found:
        for manifest in traced.data.values():
            if aside := looker.row(manifest, SET_ASIDE_ROWS):
                raise ConfigError(f"--row {example_id}: no student saw it, since it cannot be used: {aside['detail']}")
        known = ", ".join(sorted(traced.data)) or "none is left in the store"
        raise ConfigError(f"--row {example_id}: no row of the student's data has this id (looked into: {known})")
    row = next(iter(found.values()))
    golds = [gold["label"] for role in found if (gold := looker.row(traced.data[role], GOLD_ROWS))]
    return RowHistory(
        example_id=example_id,
        text=row["text"],
        sets=tuple(found),
        unknown_sets=tuple(role for role in _roles(traced.student) if role not in traced.data),
        gold=next(iter(golds), None),
        demonstrated_by=tuple(looker.demonstrated()),
        said=tuple(looker.teacher_outputs(row["text"])),
        labels=tuple(looker.labels()),
        set_aside=tuple(looker.set_aside()),
        trained=tuple(looker.trained()),
    )


def _roles(student: Manifest) -> tuple[str, ...]:
    """The roles of rows that every student of its kind has; test sets may have any name."""
    return ("train", "dev") if student.fingerprint["verb"] == "export-student" else ("unlabeled", "labeled", "test")


class _Looker:
    """Looks for one row in every artifact behind a student."""

    def __init__(self, traced: Traced, example_id: str) -> None:
        self._traced, self._store, self._id = traced, traced.store, example_id
        self._labels = [manifest for manifest in traced.manifests if manifest.kind == "pseudolabels"]

    def row(self, manifest: Manifest, file: str) -> Row | None:
        """The row in an artifact's file; None if either does not exist."""
        if all(stored.path != file for stored in manifest.files):
            return None
        path: Path = self._store.fetch(self._store.ref(manifest)) / file
        rows = pq.read_table(path, filters=[("example_id", "=", self._id)]).to_pylist()
        return rows[0] if rows else None

    def labels(self) -> Iterator[RowLabel]:
        for manifest in self._labels:
            if row := self.row(manifest, ROWS):
                yield RowLabel(
                    stage=manifest.name, label=row["label"], confidence=row["confidence"], labeler=row["labeler"]
                )

        for manifest in self._traced.manifests:
            if manifest.kind == Probabilities.kind and (row := self.row(manifest, PREDICTIONS)):
                classes, shares = manifest.fingerprint["params"]["problem"]["labels"], row["probabilities"]
                best = max(range(len(classes)), key=lambda at: shares[at])
                yield RowLabel(stage=manifest.name, label=classes[best], confidence=shares[best], labeler=manifest.name)

    def set_aside(self) -> Iterator[SetAside]:
        for manifest in self._labels:
            if row := self.row(manifest, FAILED_ROWS):
                yield SetAside(stage=manifest.name, reason=row["reason"], detail=row["detail"], raw=row["raw"])

    def demonstrated(self) -> Iterator[str]:
        for manifest in self._teachers("asked"):
            prompt = prompt_of(self._store, manifest)
            if prompt and self._id in prompt.demonstrations:
                yield manifest.name

    def teacher_outputs(self, text: str) -> Iterator[TeacherOutput]:
        for manifest in self._teachers("asked"):
            found = tuple(completions_of(self._store, manifest, self._id, text))
            note = None if found else "the ledger has no completion of this row by this prompt"
            yield TeacherOutput(stage=manifest.name, completions=found, note=note)
        for manifest in self._teachers("recorded"):
            yield self._recorded(manifest)

    def trained(self) -> Iterator[str]:
        by_key = {manifest.key: manifest for manifest in self._traced.manifests}
        for student in self._traced.manifests:
            roles = ROWS_LEARNED.get(student.kind, ())
            learned = [by_key[key] for role in roles for key in input_keys(student, role) if key in by_key]
            cells = _cells(student)
            for rows in learned:
                row = self.row(rows, GOLD_ROWS if rows.kind == "examples" and "pool" not in roles else ROWS)
                least = student.fingerprint["params"].get("min_confidence", 0.0)
                if row and any(in_cells(iter([row]), cells)) and row.get("confidence", 1.0) >= least:
                    yield student.name
                    break

    def _teachers(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self._labels if manifest.fingerprint["params"].get("teacher") == kind]

    def _recorded(self, manifest: Manifest) -> TeacherOutput:
        """From the file of completions, if it still is where the config said and unchanged."""
        origin, stage = self._traced.origin, manifest.name
        path = origin.params.get("teacher.completions") if origin else None
        if path is None:
            return TeacherOutput(
                stage=stage, completions=(), note="where the recorded completions lie is not known here"
            )
        try:
            if fingerprint(path) != manifest.fingerprint["params"]["completions"]:
                return TeacherOutput(
                    stage=stage, completions=(), note=f"the recorded completions in {path} have changed since"
                )
            found = next((one for one in read_completions(path) if one.example_id == self._id), None)
        except UserError as error:
            return TeacherOutput(stage=stage, completions=(), note=str(error))
        if found is None or isinstance(found, BadLine):
            return TeacherOutput(stage=stage, completions=(), note=f"{path} has no completion of this row")
        raw = RawCompletion(attempt=0, sample=0, text=found.text, finish_reason=found.finish_reason)
        return TeacherOutput(stage=stage, completions=(raw,))


def _cells(student: Manifest) -> Cells | None:
    """The cells of the pool that the student was trained on; None means all."""
    cells = student.fingerprint["params"].get("cells")
    return cells and Cells.model_validate(cells)
