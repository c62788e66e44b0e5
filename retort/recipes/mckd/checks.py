"""Checks of an MCKD config and its data, before a run and for `retort doctor`."""

import logging
from collections.abc import Iterator, Mapping
from functools import partial

from retort.artifacts.examples import Examples
from retort.config import EnsembleConfig, MckdConfig, RecordedConfig
from retort.config.teachers import LlmTeacherConfig, Member
from retort.data import read_rows_of
from retort.data.near_duplicates import find, indexed_share
from retort.data.partitions import cell_of
from retort.errors import ConfigError, DataError, RetortError, first_line
from retort.models.weights import Weights, find_weights
from retort.problems import infer_schema, problem_for
from retort.recipes.base import DoctorCheck
from retort.recipes.checks import (
    MOST_SHARED,
    check_gpus_of_students,
    check_llm,
    check_recorded,
    check_set_aside,
    ingest_all,
    rows_found,
    texts_of,
)
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.steps import Role, columns_of, ingest, ingests, label_by_llm, label_recorded
from retort.recipes.mckd.teacher import STEP, member_step
from retort.records.base import ArtifactRef
from retort.records.mckd import Data
from retort.steps.ingest import IN_LABELED
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.steps.pseudolabel_recorded import PseudolabelRecorded
from retort.store import Store
from retort.store.opening import refusals, usable_store
from retort.teachers.checks import check_same_tokenizer
from retort.teachers.constraints import held_to
from retort.teachers.identity import teacher_weights
from retort.tracking.address import tracking_uri

LOGGER = logging.getLogger(__name__)
Labeling = PseudolabelRecorded | PseudolabelLlm
FEW_UPDATES = 300
"""Trained on halves of 1,500 trees, a tagger of 23 M parameters scored 24 F1 after 250 steps, and 42 after 900."""
SURELY_FILLED = 50
"""With this many rows per cell on average, the chance of an empty cell is about e^-50."""


def resolve(config: MckdConfig) -> MckdConfig:
    """Return the config with the schema filled in from the labeled set, if it has none."""
    source, server = config.data.labeled, config.store.endpoint_url
    columns = columns_of(config, source)
    rows = (row for _, row in read_rows_of(source, server, columns))
    problem = infer_schema(config.problem, rows, columns)
    return config if problem is config.problem else config.model_copy(update={"problem": problem})


def check(config: MckdConfig) -> MckdConfig:
    """Run every cheap check. Returns the resolved config and leaves its data in the store.

    Raises ConfigError, DataError or StoreUnavailable.
    """
    with refusals():
        store = usable_store(config)
        store.check_writable()
        check_gpus_of_students(config.execution)
        weights = find_weights(config.student, config.store.server)
        if config.student.training.distillation is not None and isinstance(config.teacher, LlmTeacherConfig):
            check_same_tokenizer(
                config.teacher, teacher_weights(config.teacher, config.store.server), config.student, weights
            )
        if config.tracking:
            tracking_uri(config.tracking)
        config = resolve(config)
        data = ingested(config)
        if aside := check_set_aside(store, data.unlabeled, config.data.max_bad_share):
            LOGGER.warning("Warning: data.unlabeled: %s (%s).", aside.text, aside.places)
        check_overlap(store, data)
        check_cells(config, store, data.unlabeled)
        if few := few_updates(config, store, data.unlabeled):
            LOGGER.warning("Warning: %s.", few)
        for step in labelings(config, data):
            # A teacher whose labels are in the store will not run, so it is not checked.
            if step is not None and store.find(step.artifact_kind, step.key) is None:
                check_labeling(config, store, step)
    return config


def ingested(config: MckdConfig) -> Data:
    """Ingest the rows of every role."""
    labeled, test, unlabeled = ingest_all(config, ingests(config, ("labeled", "test", "unlabeled")))
    judge = made_or_found(config, ingest(config, "dev")) if config.evaluation.judge == "dev" else labeled
    return Data(labeled=labeled, unlabeled=unlabeled, test=test, judge=judge)


def labelings(config: MckdConfig, data: Data) -> Iterator[Labeling | None]:
    """The labeling step of each teacher that is recorded or an LLM; None for a fine-tuned one."""
    teacher = config.teacher
    if isinstance(teacher, EnsembleConfig):
        yield from (_labeling(config, member_step(at), member, data) for at, member in enumerate(teacher.members))
    else:
        yield _labeling(config, STEP, teacher, data)


def _labeling(config: MckdConfig, name: str, teacher: Member, data: Data) -> Labeling | None:
    match teacher:
        case RecordedConfig():
            return label_recorded(config, name, teacher, data.unlabeled)
        case LlmTeacherConfig():
            return label_by_llm(config, name, teacher, data)
    return None


def check_overlap(store: Store, data: Data) -> None:
    """Raises DataError if the labeled set and the test rows share too many texts."""
    labeled, test = texts_of(store, data.labeled), texts_of(store, data.test)
    shared = len(labeled & test)
    if shared > MOST_SHARED * min(len(labeled), len(test)):
        raise DataError(
            f"data.test and data.labeled share {shared} of {min(len(labeled), len(test))} texts: a test row that was "
            "shown to the teacher or judges stages measures nothing; give a test set of other rows"
        )


def check_cells(config: MckdConfig, store: Store, pool: ArtifactRef) -> None:
    """Raises ConfigError if a partition would have no rows."""
    method = config.method
    if method.stages == 1 or pool.rows >= SURELY_FILLED * method.partitions:
        return
    if method.partitions > pool.rows:
        raise ConfigError(
            f"method.partitions = {method.partitions}: more than the pool's {pool.rows} rows; each needs at least one"
        )
    ids = [row["example_id"] for row in Examples.open(store, pool).rows(["example_id"])]
    empty = set(range(method.partitions)) - {cell_of(i, method.partitions, method.seed) for i in ids}
    if empty:
        raise ConfigError(
            f"method.partitions = {method.partitions}: of a pool of {len(ids)} rows, {len(empty)} partition(s) would "
            "be empty; use fewer"
        )


def doctor_checks(config: MckdConfig) -> Mapping[str, DoctorCheck]:
    roles: list[Role] = ["labeled", "unlabeled", "test"]
    roles += ["dev"] if config.data.dev is not None else []
    return {
        **{f"data.{role}": partial(_rows_found, role) for role in roles},
        "leakage": _leakage_found,
        "near-duplicates": _near_duplicates_found,
        "teacher": _teacher_found,
        "student": _student_found,
        "method": _trainings_planned,
    }


def _rows_found(role: Role, config: MckdConfig) -> str:
    """Reads every row, which checks its form, label and id."""
    return rows_found(usable_store(config), _rows_of(resolve(config), role), config.data.max_bad_share)


def _rows_of(config: MckdConfig, role: Role) -> ArtifactRef:
    step = ingest(config, role)
    try:
        return made_or_found(config, step)
    except DataError:  # of the pool or of the labeled set, which has a line of its own
        return made_or_found(config, step.model_copy(update={"without": None, "labeled": None}))


def _leakage_found(config: MckdConfig) -> str:
    store, data = usable_store(config), ingested(resolve(config))
    check_overlap(store, data)
    labeled, test = texts_of(store, data.labeled), texts_of(store, data.test)
    pool = Examples.open(store, data.unlabeled).rows(["text"])
    shared = {
        "labeled and pool (left out of it)": store.manifest_of(data.unlabeled).counts.get(IN_LABELED, 0),
        "labeled and test": len(labeled & test),
        "pool and test": len({row["text"] for row in pool if row["text"] in test}),
    }
    found = "equal texts in " + ", ".join(f"{names}: {count}" for names, count in shared.items())
    return f"note: {found}" if any(shared.values()) else found


def _near_duplicates_found(config: MckdConfig) -> str:
    store, data = usable_store(config), ingested(resolve(config))
    roles = (data.unlabeled, data.labeled, data.test)
    pool, labeled, test = (
        ((row["example_id"], row["text"]) for row in Examples.open(store, ref).rows()) for ref in roles
    )
    found = find(pool, labeled, test, indexed_share(data.unlabeled.rows))
    counts = {"of the pool's rows": (found.within, data.unlabeled), "of the test rows": (found.leaked, data.test)}
    told = ", ".join(f"{len(rows):,} {what} ({len(rows) / ref.rows:.1%})" for what, (rows, ref) in counts.items())
    repeats = [*found.leaked, *found.within]
    # Where ids are digests of texts, equal texts in two files have one id.
    pairs = [f": '{one.example_id}' nearly repeats '{one.of_id}'" for one in repeats if one.example_id != one.of_id]
    return f"note: {told}{''.join(pairs[:1])}" if repeats else "none in the pool, and none of the test rows"


def _teacher_found(config: MckdConfig) -> str:
    """Checks everything about each teacher that needs no engine and costs no tokens."""
    config, store = resolve(config), usable_store(config)
    data = ingested(config)
    return "; ".join(_labeling_found(config, store, step, data) for step in labelings(config, data))


def _labeling_found(config: MckdConfig, store: Store, step: Labeling | None, data: Data) -> str:
    match step:
        case PseudolabelRecorded():
            missing, rows, labels = check_labeling(config, store, step), data.unlabeled.rows, step.num_labels(store)
            found = f"{rows - missing} of the pool's {rows} rows have a recorded completion, {labels} of them a label"
            return f"note: {found}" if missing or labels < step.min_success_ratio * rows else found
        case PseudolabelLlm():
            shown, held = check_labeling(config, store, step), held_to(problem_for(step.problem), step.config)
            return f"{step.config.kind} {step.config.model}: {shown} demonstrations, {held}"
    return "finetuned: trained on the labeled set"


def check_labeling(config: MckdConfig, store: Store, step: Labeling) -> int:
    """See `check_recorded` and `check_llm`."""
    if isinstance(step, PseudolabelRecorded):
        return check_recorded(store, step, whole_pool=config.data.limit is None)
    return check_llm(store, step)


def _student_found(config: MckdConfig) -> str:
    """Actually loads the weights."""
    weights = find_weights(config.student, config.store.server)
    config = resolve(config)
    try:
        return _loaded(config, weights)
    except RetortError:
        raise
    except Exception as error:  # transformers, a hub or damaged files may raise anything
        raise RetortError(f"student.model = '{config.student.model}': cannot be loaded: {first_line(error)}") from error


def _loaded(config: MckdConfig, weights: Weights) -> str:
    from retort.models.device import choose_device
    from retort.students.loading import new_student
    from retort.students.sharding import check_room

    pretrained = config.student.weights == "pretrained"
    student = new_student(config.student, weights, pretrained=pretrained, problem=problem_for(config.problem))
    device = choose_device(config.execution.device, config.student.training.precision, 1)
    if config.execution.student_pool is None:
        student.model.requires_grad_(getattr(config.student, "lora", None) is None)
        check_room(student.model, device, config.execution.gpus_per_student)
    millions = student.num_parameters / 1e6
    return f"{config.student.model}: {millions:.1f} M parameters, on {device.name} in {device.precision}"


def _trainings_planned(config: MckdConfig) -> str:
    config, store = resolve(config), usable_store(config)
    pool = _rows_of(config, "unlabeled")
    check_cells(config, store, pool)
    method = config.method
    trainings = method.partitions * method.stages + 1
    planned = f"{method.stages} stages of {method.partitions} students: at most {trainings} trainings"
    found = "1 stage: 1 training" if method.stages == 1 else planned
    found += "" if config.fine_tuning.kind == "never" else ", and fine-tuning"
    few = few_updates(config, store, pool)
    return f"note: {found}; {few}" if few else found


def few_updates(config: MckdConfig, store: Store, pool: ArtifactRef) -> str:
    """A warning if a student of a stage would see too few optimizer steps; empty if it sees enough. The number of
    tokens is estimated from the rows' lengths."""
    method, training = config.method, config.student.training
    if training.min_updates >= FEW_UPDATES:  # the pool need not be read
        return ""
    share = 1 / method.partitions if method.scheme == "disjoint" else 1 - 1 / method.partitions
    tokens = sum(2 + len(row["text"]) / 4 for row in Examples.open(store, pool).rows(["text"]))
    updates = max(
        training.min_updates, (share if method.stages > 1 else 1) * training.epochs * tokens / training.batch_tokens
    )
    if updates >= FEW_UPDATES:
        return ""
    return (
        f"a student sees about {updates:.0f} updates, and below {FEW_UPDATES} it may learn nothing; "
        "raise student.training.min_updates or epochs"
    )
