"""A record of each run that ended: which artifacts it rests on, so that the last runs of a config can be kept."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from pydantic import ValidationError

from retort.errors import DamagedArtifact
from retort.records.base import Record
from retort.store.store import Store

RUNS = "runs"


class RunRecord(Record):
    """A run that ended well."""

    name: str
    """The config's."""
    run_id: str
    """Of the Prefect flow run."""
    started_at: str
    """ISO 8601, UTC; so is `ended_at`."""
    ended_at: str
    artifacts: tuple[str, ...]
    """`kind/key` of each that it made or found."""


def keep_run(store: Store, record: RunRecord) -> None:
    """At `runs/<name>/<ended_at>-<run_id>.json`, shortened; the same run twice is one record."""
    ended = datetime.fromisoformat(record.ended_at).astimezone(UTC)
    path = f"{RUNS}/{record.name}/{ended:%Y%m%dT%H%M%SZ}-{record.run_id[:8]}.json"
    store.place.write(path, record.model_dump_json(indent=1).encode())


def runs(store: Store, name: str | None = None) -> list[RunRecord]:
    """Those of a config, or all; newest first. Raises StoreUnavailable, DamagedArtifact."""
    found = read_runs(store, run_paths(store, name))
    return sorted(found, key=lambda record: datetime.fromisoformat(record.ended_at), reverse=True)


def run_paths(store: Store, name: str | None = None) -> list[str]:
    """Below the root, by config, newest first. Reads none."""
    folder = f"{RUNS}/{name}" if name else RUNS
    paths = [file.path for file in store.place.walk(folder) if _is_record(file.path)]
    return sorted(sorted(paths, reverse=True), key=lambda path: path.split("/")[1])


def read_runs(store: Store, paths: Iterable[str]) -> Iterator[RunRecord]:
    """In the order of the paths; one that was removed meanwhile is left out."""
    for path in paths:
        try:
            yield RunRecord.model_validate_json(store.place.read(path))
        except FileNotFoundError:
            continue
        except ValidationError as error:
            raise DamagedArtifact(f"{store.root}/{path} is no record of a run: delete it") from error


def _is_record(path: str) -> bool:
    """A killed writer's draft begins with a dot."""
    name = path.rpartition("/")[2]
    return name.endswith(".json") and not name.startswith(".")
