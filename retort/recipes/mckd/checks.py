"""What is checked before anything is started, without torch and without Prefect: cheap, and about user errors."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from retort.config import (
    EnsembleConfig,
    LlmTeacherConfig,
    MckdConfig,
    RecordedConfig,
    Teacher,
    TrackingConfig,
    expand,
)
from retort.config.soft_label import Job
from retort.config.teachers import Member
from retort.data import read_rows_of
from retort.data.completions import read_completions
from retort.data.partitions import cell_of
from retort.errors import ConfigError, DataError, StoreUnavailable
from retort.io.parquet import read_rows
from retort.models.weights import find_weights
from retort.problems import infer_schema
from retort.recipes.execute import make, open_store
from retort.recipes.mckd.teacher import STAGE, member_stage
from retort.records.base import ArtifactRef, Data
from retort.steps.ingest import ROWS, ingest
from retort.steps.pseudolabel_llm import pseudolabel_asked
from retort.steps.pseudolabel_recorded import pseudolabel_recorded
from retort.steps.teacher_cost import questions_of
from retort.store import Store
from retort.teachers.checks import check_same_tokenizer, check_teacher
from retort.teachers.identity import teacher_weights


def resolve(config: MckdConfig) -> MckdConfig:
    """Fill what the config leaves to the data: the schema, read off the labelled set."""
    rows = (row for _, row in read_rows_of(config.data.labeled, config.store.endpoint_url))
    problem = infer_schema(config.problem, rows, config.data.columns)
    return config if problem is config.problem else config.model_copy(update={"problem": problem})


def check(config: MckdConfig) -> MckdConfig:
    """Everything that can be wrong and is cheap to see. Returns the resolved config; its data is in the store.

    Raises ConfigError, DataError or StoreUnavailable.
    """
    with refusals():
        store = usable_store(config)
        store.check_writable()
        weights = find_weights(config.student, config.store.server)
        if config.student.training.distillation is not None and isinstance(config.teacher, LlmTeacherConfig):
            check_same_tokenizer(
                config.teacher, teacher_weights(config.teacher, config.store.server), config.student, weights
            )
        if config.tracking:
            tracking_uri(config.tracking)
        config = resolve(config)
        data = ingest_all(config, store)
        check_overlap(store, data)
        check_cells(config, store, data.unlabeled)
        for name, teacher in members_of(config.teacher):
            check_member(config, name, teacher, store, data)
    return config


def members_of(teacher: Teacher) -> list[tuple[str, Member]]:
    """(name of its stage, teacher) for each that labels the pool."""
    if isinstance(teacher, EnsembleConfig):
        return [(member_stage(index), member) for index, member in enumerate(teacher.members)]
    return [(STAGE, teacher)]


def check_member(config: MckdConfig, name: str, teacher: Member, store: Store, data: Data) -> None:
    """Nothing about a teacher whose labels are in the store: it will not be asked."""
    match teacher:
        case RecordedConfig():
            stage = pseudolabel_recorded(config, name, teacher, data.unlabeled)
            if store.find(stage.kind, stage.key) is None:
                check_completions(config, teacher, store, data.unlabeled)
        case LlmTeacherConfig():
            stage = pseudolabel_asked(config, name, teacher, data)
            if store.find(stage.kind, stage.key) is None:
                questions = questions_of(config, teacher, store.fetch(data.labeled))
                check_teacher(teacher, questions, teacher_weights(teacher, config.store.server))


@contextmanager
def refusals() -> Iterator[None]:
    """A bucket that does not exist or refuses is the config's fault, and no retry heals it: ConfigError.

    One that cannot be reached stays StoreUnavailable.
    """
    try:
        yield
    except StoreUnavailable as error:
        if _heals(error.__cause__):
            raise
        raise ConfigError(str(error)) from error


def _heals(cause: BaseException | None) -> bool:
    if isinstance(cause, FileNotFoundError | PermissionError):
        return False
    if isinstance(cause, OSError):
        return cause.errno != errno.EINVAL  # s3fs's for InvalidBucketName and the like
    return type(cause).__name__ not in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")


def usable_store(config: Job) -> Store:
    """Raises ConfigError for a server's address that cannot be one."""
    endpoint_url = config.store.server
    if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
        raise ConfigError(f"store.endpoint_url = '{config.store.endpoint_url}': must begin with http:// or https://")
    if expand(config.store.root).removesuffix("/") == "s3:/":
        raise ConfigError(f"store.root = '{config.store.root}': names no bucket; allowed: s3://bucket/prefix")
    return open_store(config.store)


_TRACKING = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://.+|databricks(-uc)?(://.*)?|file:.+|[^:]+")


def tracking_uri(tracking: TrackingConfig) -> str:
    """The expanded address. Raises ConfigError for one that MLflow would only trip over when all is trained."""
    uri = expand(tracking.uri)
    if not _TRACKING.fullmatch(uri):
        raise ConfigError(
            f"tracking.uri = '{tracking.uri}': no address of a tracking server; allowed: http://host:port, "
            "https://..., sqlite:///file, postgresql://..., mysql://..., mssql://..."
        )
    return uri


def ingest_all(config: MckdConfig, store: Store) -> Data:
    """Ingest every role that the store lacks: reading the rows is the check of the data."""
    refs = {role: ingest_role(config, store, role) for role in ("labeled", "test", "unlabeled")}
    judge = ingest_role(config, store, "dev") if config.evaluation.judge == "dev" else refs["labeled"]
    return Data(**refs, judge=judge)


def ingest_role(config: MckdConfig, store: Store, role: str) -> ArtifactRef:
    stage = ingest(config, role)
    manifest = store.find(stage.kind, stage.key)
    return store.ref(manifest) if manifest else make(config, stage, 0, lambda *_: None)


def check_overlap(store: Store, data: Data) -> None:
    """Some equal texts are normal in short requests; a fifth of a set is not."""
    labeled, test = texts_of(store, data.labeled), texts_of(store, data.test)
    shared = len(labeled & test)
    if shared > 0.2 * min(len(labeled), len(test)):
        raise DataError(
            f"data.test and data.labeled share {shared} of {min(len(labeled), len(test))} texts: a test row that was "
            "shown to the teacher or judges stages measures nothing; give a test set of other rows"
        )


def texts_of(store: Store, ref: ArtifactRef) -> set[str]:
    return {row["text"] for row in read_rows(store.fetch(ref) / ROWS, ["text"])}


def check_completions(config: MckdConfig, teacher: RecordedConfig, store: Store, pool: ArtifactRef) -> int:
    """How many rows of the pool have no completion. Raises DataError for a completion of a row that is not there."""
    answers = read_completions(teacher.completions, config.store.endpoint_url)
    answered = {answer.example_id for answer in answers if answer.example_id}
    ids = {row["example_id"] for row in read_rows(store.fetch(pool) / ROWS, ["example_id"])}
    unknown = answered - ids
    if unknown and config.data.limit is None:
        raise DataError(
            f"teacher.completions = '{teacher.completions}': {len(unknown)} completion(s) for ids that the pool does "
            f"not have, such as '{min(unknown)}'"
        )
    return len(ids - answered)


SURELY_FILLED = 50
"""Rows for each cell from which on none is empty but once in e^50 times."""


def check_cells(config: MckdConfig, store: Store, pool: ArtifactRef) -> None:
    """Raises ConfigError where a partition would have no rows."""
    method = config.method
    if method.stages == 1 or pool.rows >= SURELY_FILLED * method.partitions:
        return
    if method.partitions > pool.rows:
        raise ConfigError(
            f"method.partitions = {method.partitions}: more than the pool's {pool.rows} rows; each needs at least one"
        )
    ids = [row["example_id"] for row in read_rows(store.fetch(pool) / ROWS, ["example_id"])]
    empty = set(range(method.partitions)) - {cell_of(i, method.partitions, method.seed) for i in ids}
    if empty:
        raise ConfigError(
            f"method.partitions = {method.partitions}: of a pool of {len(ids)} rows, {len(empty)} partition(s) would "
            "be empty; use fewer"
        )
