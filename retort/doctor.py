"""Everything that a run needs, checked before anything is spent; more thorough, and slower, than the preflight."""

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Literal

from retort.config import Config, RecordedConfig, expand
from retort.errors import RetortError
from retort.preflight import check, check_completions, check_overlap, ingest_all, resolve, texts_of
from retort.records import Record
from retort.stages.making import open_store


class Finding(Record):
    verdict: Literal["ok", "note", "wrong"]
    what: str
    detail: str


def examine(config: Config) -> Iterator[Finding]:
    """One finding for each thing looked at; a thing that is wrong does not hide the next."""
    looks: dict[str, Callable[[Config], str]] = {
        "versions": versions,
        "store": store,
        "data": data,
        "leakage": leakage,
        "teacher": teacher,
        "student": student,
        "method": method,
        "tracking": tracking,
    }
    for what, look in looks.items():
        try:
            detail = look(config)
        except RetortError as error:
            yield Finding(verdict="wrong", what=what, detail=str(error))
        else:
            yield Finding(verdict="note" if detail.startswith("note: ") else "ok", what=what, detail=detail)


def versions(config: Config) -> str:
    """Combinations that are known to break although pip is content."""
    version = importlib.metadata.version
    fastapi = tuple(int(part) for part in version("fastapi").split(".")[:2])
    if not (0, 139) <= fastapi < (0, 151):
        raise RetortError(
            f"fastapi {version('fastapi')} breaks every flow of prefect {version('prefect')}: "
            "install fastapi>=0.139,<0.151"
        )
    names = ("prefect", "torch", "transformers", "mlflow", "fastapi")
    return ", ".join(f"{name} {version(name)}" for name in names)


def store(config: Config) -> str:
    open_store(config.store).check_writable()
    return f"{config.store.root} can be written"


def data(config: Config) -> str:
    """Every row is read: of the right form, its label legal, its id unique."""
    config = resolve(config)
    refs = ingest_all(config, open_store(config.store))
    return f"{refs.labeled.rows} labelled, {refs.unlabeled.rows} unlabelled, {refs.test.rows} test rows"


def leakage(config: Config) -> str:
    config = resolve(config)
    place = open_store(config.store)
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


def teacher(config: Config) -> str:
    config = resolve(config)
    if not isinstance(config.teacher, RecordedConfig):
        return f"{config.teacher.kind}: trained on the labelled set"
    place = open_store(config.store)
    pool = ingest_all(config, place).unlabeled
    missing = check_completions(config, config.teacher, place, pool)
    told = f"{pool.rows - missing} of the pool's {pool.rows} rows have a recorded completion"
    return f"note: {told}" if missing else told


def student(config: Config) -> str:
    """Really loads the weights."""
    from retort.problems import problem_for
    from retort.students.device import choose_device
    from retort.students.encoder import new_encoder
    from retort.students.weights import find_weights

    config = resolve(config)
    training = config.student.training
    encoder = new_encoder(
        config.student.kind,
        find_weights(config.student),
        pretrained=config.student.weights == "pretrained",
        problem=problem_for(config.problem),
        max_length=training.max_length,
    )
    device = choose_device(config.execution.device, training.precision, 1)
    parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
    return f"{config.student.model}: {parameters / 1e6:.1f} M parameters, on {device.name} in {device.precision}"


def method(config: Config) -> str:
    check(config)
    trainings = config.method.partitions * config.method.stages + 1 if config.method.stages > 1 else 1
    return f"{config.method.stages} stages of {config.method.partitions} students: at most {trainings} trainings"


def tracking(config: Config) -> str:
    from retort.tracking.address import check_reachable

    if config.tracking is None:
        return "note: no tracking is configured, so numbers go to the report only"
    check_reachable(expand(config.tracking.uri))
    return f"{config.tracking.uri} can be reached"
