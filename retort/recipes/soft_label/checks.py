"""Checks of a soft-label config and its data, before a run and for `retort doctor`."""

import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from retort.artifacts.examples import Examples
from retort.config.soft_label import TINY_ARMS, CrossEncoderConfig, ProbabilitiesConfig, SoftLabelConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data import read_rows_of
from retort.data.probabilities import contradiction, num_known, recorded_probabilities
from retort.errors import DataError
from retort.io.parquet import count_rows
from retort.models.weights import find_weights
from retort.problems import infer_schema, problem_for
from retort.recipes.base import DoctorCheck
from retort.recipes.checks import (
    MOST_SHARED,
    check_gpus_of_students,
    check_llm,
    check_set_aside,
    ingest_all,
    rows_found,
    texts_of,
)
from retort.recipes.execute import made_or_found
from retort.recipes.soft_label.steps import ingest, ingests, label_by_llm, settings_of
from retort.records.base import ArtifactRef
from retort.store import Store
from retort.store.opening import refusals, usable_store
from retort.tracking.address import tracking_uri

LOGGER = logging.getLogger(__name__)
LEAST_ROWS = 2
"""Fewest training rows per class. A class that occurs once cannot be learned."""


def resolve(config: SoftLabelConfig) -> SoftLabelConfig:
    """Return the config with the classes filled in from the training file, if it names none."""
    if config.problem.labels is not None:
        return config
    rows = (row for _, row in read_rows_of(config.data.train, config.store.endpoint_url, config.data.columns))
    problem = infer_schema(config.problem, rows, config.data.columns)
    return config.model_copy(update={"problem": problem})


def check(config: SoftLabelConfig) -> SoftLabelConfig:
    """Run every cheap check. Returns the resolved config and leaves its data in the store.

    Raises ConfigError, DataError or StoreUnavailable.
    """
    with refusals():
        store = usable_store(config)
        store.check_writable()
        check_gpus_of_students(config.execution)
        if config.tracking:
            tracking_uri(config.tracking)
        check_models(config)
        config = resolve(config)
        rows = ingested(config)
        if "unlabeled" in rows and (aside := check_set_aside(store, rows["unlabeled"], config.data.max_bad_share)):
            LOGGER.warning("Warning: data.unlabeled: %s (%s).", aside.text, aside.places)
        check_classes(config, store, rows["train"])
        check_tests(config, store, rows)
        check_llm_teacher(config, store, rows)
        if isinstance(config.teacher, ProbabilitiesConfig):
            check_probabilities(config, config.teacher, store, rows)
    return config


def check_models(config: SoftLabelConfig) -> None:
    """Raises ConfigError if a model that will be trained does not exist."""
    if isinstance(config.teacher, CrossEncoderConfig):
        find_weights(config.teacher, config.store.server, "teacher.model")
    if "tinybert" in config.arms:
        small = CrossEncoderConfig(kind="finetuned", model=config.tinybert.model)
        find_weights(small, config.store.server, "tinybert.model")


def ingested(config: SoftLabelConfig) -> dict[str, ArtifactRef]:
    """Ingest the rows of every role."""
    roles = roles_of(config)
    return dict(zip(roles, ingest_all(config, ingests(config, roles)), strict=True))


def roles_of(config: SoftLabelConfig) -> list[str]:
    return ["train", "dev", *config.data.tests, *(["unlabeled"] if config.data.unlabeled is not None else [])]


def check_classes(config: SoftLabelConfig, store: Store, train: ArtifactRef) -> None:
    """Raises DataError if a class has too few training rows."""
    labels = Counter(row["label"] for row in Examples.open(store, train).gold_rows())
    for name in problem_for(config.problem).classes:
        if labels[name] < LEAST_ROWS:
            raise DataError(
                f"data.train: the class '{name}' has {labels[name]} training row(s); at least {LEAST_ROWS} are needed, "
                "or leave the class out of problem.labels"
            )


def check_tests(config: SoftLabelConfig, store: Store, rows: dict[str, ArtifactRef]) -> None:
    """Raises DataError if dev or test rows share too many texts with the training rows."""
    trained = texts_of(store, rows["train"])
    for name in ("dev", *config.data.tests):
        texts = texts_of(store, rows[name])
        shared = len(texts & trained)
        if shared > MOST_SHARED * len(texts):
            where = "data.dev" if name == "dev" else f"data.tests.{name}"
            raise DataError(
                f"{where} and data.train share {shared} of {len(texts)} texts: a row that was trained on measures "
                "nothing; give other rows"
            )


def check_llm_teacher(config: SoftLabelConfig, store: Store, rows: Mapping[str, ArtifactRef]) -> None:
    if isinstance(config.teacher, LlmTeacherConfig):
        check_llm(store, label_by_llm(config, "teacher/labels-train", config.teacher, rows["train"], rows["dev"]))


def check_probabilities(
    config: SoftLabelConfig, teacher: ProbabilitiesConfig, store: Store, rows: Mapping[str, ArtifactRef]
) -> int:
    """Return how many training rows have no probabilities.

    Raises DataError if too few rows have any, if a row's values are not a distribution over the classes, or if an id
    names different rows in different roles.
    """
    classes, train = problem_for(config.problem).classes, Examples.open(store, rows["train"]).path
    with recorded_probabilities(teacher.probabilities, classes, config.store.endpoint_url) as known:
        check_same_rows(config, teacher, store, rows, known)
        found, total = num_known(train, known), count_rows(train)
    if found < teacher.min_success_ratio * total or not found:
        raise DataError(
            f"teacher.probabilities = '{teacher.probabilities}': knows {found} of {total} training rows, below "
            f"teacher.min_success_ratio = {teacher.min_success_ratio:g}; rows are matched on their ids"
        )
    return total - found


def check_same_rows(
    config: SoftLabelConfig,
    teacher: ProbabilitiesConfig,
    store: Store,
    rows: Mapping[str, ArtifactRef],
    known: Path,
) -> None:
    """Raises DataError if an id in the file is that of different texts in two roles: its probabilities are of one of
    them, and the file does not say of which."""
    roles = [role for role in rows if role != "unlabeled" or "with-pool" in config.arms]
    found = contradiction([Examples.open(store, rows[role]).path for role in roles], known)
    if found is not None:
        raise DataError(
            f"teacher.probabilities = '{teacher.probabilities}': the id '{found.example_id}' is that of two rows, "
            f"{_shown(roles[found.file], found.text)} and {_shown(roles[found.other_file], found.other_text)}, and the "
            "file does not say which of them it is for; give every row of train, dev and tests an id of its own"
        )


def _shown(role: str, text: str) -> str:
    return f"of {role} ('{' / '.join(text.splitlines()):.80}')"


def doctor_checks(config: SoftLabelConfig) -> Mapping[str, DoctorCheck]:
    return {
        **{f"data.{role}": partial(_rows_found, role) for role in roles_of(config)},
        "classes": _classes_found,
        "leakage": _leakage_found,
        "teacher": _teacher_found,
        "arms": _arms_found,
    }


def _rows_found(role: str, config: SoftLabelConfig) -> str:
    rows = made_or_found(config, ingest(resolve(config), role))
    return rows_found(usable_store(config), rows, config.data.max_bad_share)


def _classes_found(config: SoftLabelConfig) -> str:
    config = resolve(config)
    store = usable_store(config)
    train = made_or_found(config, ingest(config, "train"))
    check_classes(config, store, train)
    labels = Counter(row["label"] for row in Examples.open(store, train).gold_rows())
    return ", ".join(f"{name} {count}" for name, count in labels.most_common())


def _leakage_found(config: SoftLabelConfig) -> str:
    config = resolve(config)
    store = usable_store(config)
    check_tests(config, store, ingested(config))
    return "few or none of the dev and test rows have the text of a training row"


def _teacher_found(config: SoftLabelConfig) -> str:
    check_models(config)
    config = resolve(config)
    store = usable_store(config)
    rows = ingested(config)
    check_llm_teacher(config, store, rows)
    teacher = config.teacher
    if isinstance(teacher, ProbabilitiesConfig):
        missing = check_probabilities(config, teacher, store, rows)
        found = f"{rows['train'].rows - missing} of {rows['train'].rows} training rows have probabilities"
        return f"note: {found}" if missing else found
    if isinstance(teacher, CrossEncoderConfig):
        return f"{teacher.model}: trained {teacher.folds + 1} times, {teacher.folds} of them on a part of the rows"
    return f"{teacher.kind} {teacher.model}: demonstrations from the dev rows"


def _arms_found(config: SoftLabelConfig) -> str:
    settings = [len(settings_of(config, arm)) for arm in TINY_ARMS if arm in config.arms]
    return f"{len(config.arms)} arms; {sum(settings) * config.grid.seeds} tiny students to train"
