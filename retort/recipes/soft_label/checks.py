"""What is checked before a run of the score flow is started, without torch and without Prefect."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from retort.config import EndpointConfig, LlmTeacherConfig, TransformersConfig, VllmConfig
from retort.config.soft_label import TINY_ARMS, CrossEncoderConfig, ProbabilitiesConfig, SoftLabelConfig
from retort.data import read_rows_of
from retort.data.probabilities import read_probabilities
from retort.errors import DataError
from retort.io.parquet import read_rows
from retort.models.weights import find_weights
from retort.problems import infer_schema, problem_for
from retort.recipes.execute import make
from retort.recipes.mckd.checks import refusals, texts_of, tracking_uri, usable_store
from retort.recipes.soft_label.jobs import asked_job
from retort.records.base import ArtifactRef
from retort.steps.ingest import GOLD_ROWS, ROWS, ingest_answers
from retort.steps.teacher_cost import questions_of
from retort.steps.train_grid import settings_of
from retort.store import Store
from retort.teachers.checks import check_teacher
from retort.teachers.identity import teacher_weights

LEAST_ROWS = 2
"""Of each class, in the training rows: one that occurs once cannot be both learnt and told from chance."""


def resolve_scores(config: SoftLabelConfig) -> SoftLabelConfig:
    """Fill what the config leaves to the data: the classes, read off the training file."""
    if config.problem.labels is not None:
        return config
    rows = (row for _, row in read_rows_of(config.data.train, config.store.endpoint_url))
    problem = infer_schema(config.problem, rows, config.data.columns)
    return config.model_copy(update={"problem": problem})


def check_scores(config: SoftLabelConfig) -> SoftLabelConfig:
    """Everything that can be wrong and is cheap to see. Returns the resolved config; its data is in the store.

    Raises ConfigError, DataError or StoreUnavailable.
    """
    with refusals():
        store = usable_store(config)
        store.check_writable()
        if config.tracking:
            tracking_uri(config.tracking)
        check_models(config)
        config = resolve_scores(config)
        rows = ingest_roles(config, store)
        check_classes(config, store, rows["train"])
        check_tests(config, store, rows)
        check_asked(config, store, rows)
        if isinstance(config.teacher, ProbabilitiesConfig):
            check_probabilities(config, config.teacher, store, rows["train"])
    return config


def check_models(config: SoftLabelConfig) -> None:
    """Raises ConfigError where a model that will be trained is not there."""
    if isinstance(config.teacher, CrossEncoderConfig):
        find_weights(config.teacher, config.store.server, "teacher.model")
    if "tinybert" in config.arms:
        small = CrossEncoderConfig(kind="finetuned", model=config.tinybert.model)
        find_weights(small, config.store.server, "tinybert.model")


def ingest_roles(config: SoftLabelConfig, store: Store) -> dict[str, ArtifactRef]:
    """Ingest every role that the store lacks: reading the rows is the check of the data."""
    roles = ["train", "dev", *config.data.tests, *(["unlabeled"] if config.data.unlabeled is not None else [])]
    return {role: ingest_role_of(config, store, role) for role in roles}


def ingest_role_of(config: SoftLabelConfig, store: Store, role: str) -> ArtifactRef:
    stage = ingest_answers(config, role)
    manifest = store.find(stage.kind, stage.key)
    return store.ref(manifest) if manifest else make(config, stage, 0, lambda *_: None)


def check_classes(config: SoftLabelConfig, store: Store, train: ArtifactRef) -> None:
    """Raises DataError where a class has too few training rows."""
    labels = Counter(row["label"] for row in read_rows(store.fetch(train) / GOLD_ROWS, ["label"]))
    for name in problem_for(config.problem).classes:
        if labels[name] < LEAST_ROWS:
            raise DataError(
                f"data.train: the class '{name}' has {labels[name]} training row(s); at least {LEAST_ROWS} are needed, "
                "or leave the class out of problem.labels"
            )


def check_tests(config: SoftLabelConfig, store: Store, rows: dict[str, ArtifactRef]) -> None:
    """Some equal answers to a question are normal; a fifth of a test set is not."""
    trained = texts_of(store, rows["train"])
    for name in ("dev", *config.data.tests):
        texts = texts_of(store, rows[name])
        shared = len(texts & trained)
        if shared > 0.2 * len(texts):
            where = "data.dev" if name == "dev" else f"data.tests.{name}"
            raise DataError(
                f"{where} and data.train share {shared} of {len(texts)} texts: a row that was trained on measures "
                "nothing; give other rows"
            )


def check_asked(config: SoftLabelConfig, store: Store, rows: dict[str, ArtifactRef]) -> None:
    """Everything about a teacher that is asked row by row that can be seen without paying for a token."""
    if isinstance(config.teacher, VllmConfig | EndpointConfig | TransformersConfig):
        job = asked_job(config)
        teacher: LlmTeacherConfig = config.teacher
        questions = questions_of(job, teacher, store.fetch(rows["dev"]))  # its demonstrations
        check_teacher(teacher, questions, teacher_weights(teacher, config.store.server))


def check_probabilities(config: SoftLabelConfig, teacher: ProbabilitiesConfig, store: Store, train: ArtifactRef) -> int:
    """How many training rows have none. Raises DataError for a row that gives no distribution over the classes, and
    where too few are known."""
    classes = problem_for(config.problem).classes
    known = {one.example_id for one in read_probabilities(teacher.probabilities, classes, config.store.endpoint_url)}
    ids = [row["example_id"] for row in read_rows(store.fetch(train) / ROWS, ["example_id"])]
    found = sum(one in known for one in ids)
    if found < teacher.min_success_ratio * len(ids) or not found:
        raise DataError(
            f"teacher.probabilities = '{teacher.probabilities}': knows {found} of {len(ids)} training rows, below "
            f"teacher.min_success_ratio = {teacher.min_success_ratio:g}; rows are matched on their ids"
        )
    return len(ids) - found


def score_looks(config: SoftLabelConfig) -> dict[str, Callable[[SoftLabelConfig], str]]:
    """What `retort doctor` looks at beside versions, store and tracking: each says what it found, or raises."""
    roles = ["train", "dev", *config.data.tests, *(["unlabeled"] if config.data.unlabeled is not None else [])]
    return {
        **{f"data.{role}": partial(_rows_told, role) for role in roles},
        "classes": _classes_told,
        "leakage": _leakage_told,
        "teacher": _teacher_told,
        "arms": _arms_told,
    }


def _rows_told(role: str, config: SoftLabelConfig) -> str:
    config = resolve_scores(config)
    return f"{ingest_role_of(config, usable_store(config), role).rows} rows"


def _classes_told(config: SoftLabelConfig) -> str:
    config = resolve_scores(config)
    store = usable_store(config)
    train = ingest_role_of(config, store, "train")
    check_classes(config, store, train)
    labels = Counter(row["label"] for row in read_rows(store.fetch(train) / GOLD_ROWS, ["label"]))
    return ", ".join(f"{name} {count}" for name, count in labels.most_common())


def _leakage_told(config: SoftLabelConfig) -> str:
    config = resolve_scores(config)
    store = usable_store(config)
    check_tests(config, store, ingest_roles(config, store))
    return "few or none of the dev and test rows have the text of a training row"


def _teacher_told(config: SoftLabelConfig) -> str:
    check_models(config)
    config = resolve_scores(config)
    store = usable_store(config)
    rows = ingest_roles(config, store)
    check_asked(config, store, rows)
    teacher = config.teacher
    if isinstance(teacher, ProbabilitiesConfig):
        missing = check_probabilities(config, teacher, store, rows["train"])
        told = f"{rows['train'].rows - missing} of {rows['train'].rows} training rows have probabilities"
        return f"note: {told}" if missing else told
    if isinstance(teacher, CrossEncoderConfig):
        return f"{teacher.model}: trained {teacher.folds + 1} times, {teacher.folds} of them on a part of the rows"
    return f"{teacher.kind} {teacher.model}: demonstrations from the dev rows"


def _arms_told(config: SoftLabelConfig) -> str:
    settings = [len(settings_of(config, arm)) for arm in TINY_ARMS if arm in config.arms]
    return f"{len(config.arms)} arms; {sum(settings) * config.grid.seeds} tiny students to train"
