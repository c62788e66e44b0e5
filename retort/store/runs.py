"""Records of finished runs and the artifacts that they need, so that a config's last runs can be kept."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from pydantic import ValidationError, field_validator

from retort.errors import DamagedArtifact
from retort.records.base import Record
from retort.store.store import Store, read_again

RUNS = "runs"


class RunRecord(Record):
    """A run that succeeded."""

    name: str
    """The config's name."""
    run_id: str
    """The id of the Prefect flow run."""
    started_at: str
    """ISO 8601, UTC; so is `ended_at`."""
    ended_at: str
    artifacts: tuple[str, ...]
    """`kind/key` of each artifact that it made or found."""

    @field_validator("started_at", "ended_at")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        datetime.fromisoformat(text)
        return text


def keep_run(store: Store, record: RunRecord) -> None:
    """Write the record to `runs/<name>/<ended_at>-<run_id>.json` (both shortened), once per run."""
    ended = datetime.fromisoformat(record.ended_at).astimezone(UTC)
    path = f"{RUNS}/{record.name}/{ended:%Y%m%dT%H%M%SZ}-{record.run_id[:8]}.json"
    store.place.write(path, record.model_dump_json(indent=1).encode())


def runs(store: Store, name: str | None = None) -> list[RunRecord]:
    """The runs of one config, or of all; newest first. Raises StoreUnavailable, DamagedArtifact."""
    found = read_runs(store, run_paths(store, name))
    return sorted(found, key=lambda record: datetime.fromisoformat(record.ended_at), reverse=True)


def run_paths(store: Store, name: str | None = None) -> list[str]:
    """Paths of the records below the root, by config, newest first, without reading them."""
    folder = f"{RUNS}/{name}" if name else RUNS
    paths = [file.path for file in store.place.walk(folder) if _is_record(file.path)]
    return sorted(sorted(paths, reverse=True), key=lambda path: path.split("/")[1])


def read_runs(store: Store, paths: Iterable[str]) -> Iterator[RunRecord]:
    """Read records in the order of the paths. Skips records that were deleted in the meantime."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield read_again(partial(_read_run, store, path))


def _read_run(store: Store, path: str) -> RunRecord:
    try:
        return RunRecord.model_validate_json(store.place.read(path))
    except ValidationError as error:
        raise DamagedArtifact(f"{store.root}/{path} is no record of a run: delete it") from error


def _is_record(path: str) -> bool:
    """Whether it is a record. Drafts of killed writers start with a dot."""
    name = path.rpartition("/")[2]
    return name.endswith(".json") and not name.startswith(".")
