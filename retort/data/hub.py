"""Data sets on a Hugging Face hub, or in a local folder that `datasets.load_dataset` reads."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort.config import HubConfig, expand
from retort.data.class_names import names_of
from retort.data.formats import PlacedRow
from retort.errors import DataError, StoreUnavailable, first_line
from retort.records.base import digest

HUB_SECONDS = 30.0
"""How long the hub may take to say which commit a branch is at."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_rows(source: HubConfig) -> Iterator[PlacedRow]:
    """(place, raw row) of every row, streamed. Raises DataError."""
    name = _name(source)
    rows = _stream(source, name)
    number = 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # anything the data set's files, the hub or the network can raise
            raise DataError(f"{name}, row {number}: {first_line(error)}") from error
        yield f"{name}, row {number}", row


def hub_class_names(source: HubConfig, column: str) -> list[str] | None:
    """The names of a column's numbers, if the data set says them. Raises DataError."""
    features = _loaded(source, _name(source)).features
    return names_of(features.to_dict(), column) if features else None


def hub_fingerprint(source: HubConfig) -> str:
    """A sha256 that changes when the content does: the files' digests for a folder, the commit for a hub data set.

    The hub is asked only if `revision` is not a commit already. Raises DataError for a data set or revision that does
    not exist, StoreUnavailable for a hub that cannot be reached.
    """
    name = expand(source.hub)
    if os.path.isdir(name):  # the same test as `load_dataset`, which prefers a folder to a hub name
        parts = {"subset": source.subset, "split": source.split, "revision": source.revision}
        return digest({**parts, "files": _file_digests(Path(name), source.hub)})
    if _COMMIT.fullmatch(source.revision):
        return digest(source.model_dump())
    return digest({**source.model_dump(), "revision": _commit(name, source)})


def _name(source: HubConfig) -> str:
    return f"{source.hub} ({', '.join(part for part in (source.subset, source.split) if part)})"


def _stream(source: HubConfig, name: str) -> Iterator[dict[str, Any]]:
    rows = _loaded(source, name)
    try:
        return iter(rows)
    except Exception as error:  # as below
        raise DataError(f"{name}: {first_line(error)}") from error


def _loaded(source: HubConfig, name: str) -> Any:
    """The data set, not read yet. Raises DataError."""
    import datasets

    try:
        return datasets.load_dataset(
            expand(source.hub), name=source.subset, split=source.split, revision=source.revision, streaming=True
        )
    except Exception as error:  # a missing data set, subset, split or revision each has an exception type of its own
        raise DataError(f"{name}: {first_line(error)}") from error


def _file_digests(folder: Path, name: str) -> list[tuple[str, str]]:
    """(relative path, sha256) of each file; the paths count because `datasets` derives splits and subsets from them."""
    digests = []
    try:
        for path in _visible_files(folder):
            with path.open("rb") as stream:
                digests.append((path.relative_to(folder).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()))
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    return digests


def _visible_files(folder: Path) -> Iterator[Path]:
    """The files that `datasets` may read, in a fixed order. It ignores hidden ones, and folders like `__pycache__`."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        paths = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _commit(name: str, source: HubConfig) -> str:
    """The commit that the source's branch or tag points to now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(name.removeprefix("hf://datasets/"), revision=source.revision, timeout=HUB_SECONDS)
    except HFValidationError as error:
        raise DataError(f"{source.hub}: no such folder, and not the name of a data set on a hub") from error
    except RevisionNotFoundError as error:
        raise DataError(f"{source.hub}: the hub has no revision '{source.revision}' of this data set") from error
    except RepositoryNotFoundError as error:
        raise DataError(f"{source.hub}: the hub has no such data set, or does not let you read it") from error
    except Exception as error:  # which HTTP client the hub's library uses, and so what it raises, varies by version
        raise StoreUnavailable(f"{source.hub}: the hub does not answer ({first_line(error)})") from error
    if info.sha is None:
        raise DataError(f"{source.hub}: the hub names no commit for revision '{source.revision}'")
    return info.sha
