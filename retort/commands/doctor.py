"""Everything that a run needs, checked before anything is spent; more thorough, and slower, than the preflight."""

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from retort.config import LlmTeacherConfig, MckdConfig, RecordedConfig
from retort.config.soft_label import Job, SoftLabelConfig
from retort.config.teachers import Member
from retort.errors import RetortError
from retort.recipes.mckd.checks import (
    check_cells,
    check_completions,
    check_overlap,
    ingest_all,
    ingest_role,
    members_of,
    refusals,
    resolve,
    texts_of,
    tracking_uri,
    usable_store,
)
from retort.recipes.soft_label.checks import score_looks
from retort.records.base import Data, Record
from retort.steps.teacher_cost import questions_of
from retort.store import Store
from retort.teachers.checks import check_teacher
from retort.teachers.identity import teacher_weights

if TYPE_CHECKING:
    from retort.models.weights import Weights


class Finding(Record):
    verdict: Literal["ok", "note", "wrong"]
    what: str
    detail: str


Look = Callable[[Any], str]
"""At a resolved or unresolved config of one of the flows."""


def examine(config: Job) -> Iterator[Finding]:
    """One finding for each thing looked at; a thing that is wrong does not hide the next."""
    told: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="retort-doctor-") as spare:
        for what, look in _looks(config).items():
            finding = _finding(what, look, config)
            if what == "store" and finding.verdict == "wrong":
                # The rows can be looked at all the same.
                config = config.model_copy(update={"store": config.store.model_copy(update={"root": spare})})
            if finding.verdict == "wrong" and finding.detail in told:
                yield Finding(verdict="note", what=what, detail="not looked at, for a reason given above")
                continue
            told.add(finding.detail)
            yield finding


def _looks(config: Job) -> dict[str, Look]:
    if isinstance(config, SoftLabelConfig):
        return {"versions": versions, "store": store, **score_looks(config), "tracking": tracking}
    roles = ["labeled", "unlabeled", "test", *(["dev"] if config.data.dev is not None else [])]
    return {
        "versions": versions,
        "store": store,
        **{f"data.{role}": partial(data, role) for role in roles},
        "leakage": leakage,
        "teacher": teacher,
        "student": student,
        "method": method,
        "tracking": tracking,
    }


def _finding(what: str, look: Look, config: Job) -> Finding:
    try:
        with refusals():
            detail = look(config)
    except RetortError as error:
        return Finding(verdict="wrong", what=what, detail=str(error))
    if detail.startswith("note: "):
        return Finding(verdict="note", what=what, detail=detail.removeprefix("note: "))
    return Finding(verdict="ok", what=what, detail=detail)


FASTAPI = ((0, 139), (0, 151))
"""From the first on, and below the second; others break Prefect's server although pip is content."""


def versions(config: Job) -> str:
    """Combinations that are known to break although pip is content."""
    found = {name: _version(name) for name in ("prefect", "torch", "transformers", "mlflow", "fastapi")}
    fastapi = tuple(int(part) for part in found["fastapi"].split(".")[:2])
    if not FASTAPI[0] <= fastapi < FASTAPI[1]:
        raise RetortError(
            f"fastapi {found['fastapi']} breaks every flow of prefect {found['prefect']}: install fastapi>=0.139,<0.151"
        )
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise RetortError(f"{name} is not installed: install what requirements.lock lists") from None


def store(config: Job) -> str:
    usable_store(config).check_writable()
    return f"{config.store.root} can be written"


def data(role: str, config: MckdConfig) -> str:
    """Every row is read: of the right form, its label legal, its id unique."""
    config = resolve(config)
    return f"{ingest_role(config, usable_store(config), role).rows} rows"


def leakage(config: MckdConfig) -> str:
    config = resolve(config)
    place = usable_store(config)
    refs = ingest_all(config, place)
    check_overlap(place, refs)
    labeled, pool, test = (texts_of(place, ref) for ref in (refs.labeled, refs.unlabeled, refs.test))
    shared = {
        "labelled and pool": len(labeled & pool),
        "labelled and test": len(labeled & test),
        "pool and test": len(pool & test),
    }
    told = "equal texts in " + ", ".join(f"{names}: {count}" for names, count in shared.items())
    return f"note: {told}" if any(shared.values()) else told


def teacher(config: MckdConfig) -> str:
    """Everything about each teacher that can be seen without starting an engine or paying for a token."""
    config = resolve(config)
    place = usable_store(config)
    data = ingest_all(config, place)
    return "; ".join(_teacher_told(config, member, place, data) for _, member in members_of(config.teacher))


def _teacher_told(config: MckdConfig, member: Member, place: Store, data: Data) -> str:
    match member:
        case RecordedConfig():
            missing = check_completions(config, member, place, data.unlabeled)
            told = (
                f"{data.unlabeled.rows - missing} of the pool's {data.unlabeled.rows} rows have a recorded completion"
            )
            return f"note: {told}" if missing else told
        case LlmTeacherConfig():
            questions = questions_of(config, member, place.fetch(data.labeled))
            check_teacher(member, questions, teacher_weights(member, config.store.server))
            shown = sum(turn.role == "assistant" for turn in questions.everything)
            return f"{member.kind} {member.model}: {shown} demonstrations"
    return f"{member.kind}: trained on the labelled set"


def student(config: MckdConfig) -> str:
    """Really loads the weights."""
    from retort.models.weights import find_weights

    weights = find_weights(config.student, config.store.server)
    config = resolve(config)
    try:
        return _loaded(config, weights)
    except RetortError:
        raise
    except Exception as error:  # whatever transformers, a hub and damaged files can raise
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RetortError(f"student.model = '{config.student.model}': cannot be loaded: {sentence}") from error


def _loaded(config: MckdConfig, weights: "Weights") -> str:
    from retort.models.device import choose_device
    from retort.problems import problem_for
    from retort.students.loading import new_student

    pretrained = config.student.weights == "pretrained"
    student = new_student(config.student, weights, pretrained=pretrained, problem=problem_for(config.problem))
    device = choose_device(config.execution.device, config.student.training.precision, 1)
    millions = student.num_parameters / 1e6
    return f"{config.student.model}: {millions:.1f} M parameters, on {device.name} in {device.precision}"


def method(config: MckdConfig) -> str:
    config = resolve(config)
    place = usable_store(config)
    check_cells(config, place, ingest_role(config, place, "unlabeled"))
    if config.method.stages == 1:
        return "1 stage: 1 training"
    trainings = config.method.partitions * config.method.stages + 1
    return f"{config.method.stages} stages of {config.method.partitions} students: at most {trainings} trainings"


def tracking(config: Job) -> str:
    from retort.tracking.address import check_reachable, database_file, without_secrets

    if config.tracking is None:
        return "note: no tracking is configured, so numbers go to the report only"
    uri = tracking_uri(config.tracking)
    check_reachable(uri)
    if (file := database_file(uri)) is not None:
        above = next(folder for folder in file.parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise RetortError(f"tracking.uri = '{config.tracking.uri}': nothing can be written in '{above}'")
    return f"{without_secrets(config.tracking.uri)} can be reached"
