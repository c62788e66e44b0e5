"""The names of a column's numbers (a Hugging Face ClassLabel), in a Parquet file's metadata or in a card beside it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from retort.config import ColumnsConfig, Source
from retort.data.files import DataFile, data_files

_CARDS = ("dataset_infos.json", "dataset_info.json", "README.md")
_LEVELS = 3
"""Folders in which the card is looked for: the file's own, and those above it, since data often lie in `data/`."""
_MOST_BYTES = 2**24

Columns = TypeVar("Columns", bound=ColumnsConfig)


def with_tag_names(columns: Columns, source: Source, endpoint_url: str | None) -> Columns:
    """The columns with the names of tags that are numbers, if the source's card says them and the config does not."""
    if columns.tag_names is not None or not isinstance(source, str):
        return columns
    names = _names_beside(data_files(source, endpoint_url)[0], columns.tags)
    return columns.model_copy(update={"tag_names": names}) if names else columns


def names_inside(file: DataFile, column: str) -> list[str] | None:
    """The names that a Parquet file written by `datasets` holds."""
    if file.format != "parquet":
        return None
    with file.reading() as stream:
        try:
            metadata = pq.read_schema(stream).metadata or {}
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError):
            return None
    return names_of(features, column)


def names_of(features: object, column: str) -> list[str] | None:
    """A column's names in the features of a data set, as `datasets` writes them in JSON or in a card."""
    if isinstance(features, Mapping):
        return _class_label(features.get(column))
    if isinstance(features, list):
        return next(
            (_class_label(one) for one in features if isinstance(one, dict) and one.get("name") == column), None
        )
    return None


def _class_label(feature: object) -> list[str] | None:
    """The names in a ClassLabel, or in what is a list of them."""
    if isinstance(feature, list):
        return next((names for one in feature if (names := _class_label(one))), None)
    if not isinstance(feature, Mapping):
        return None
    names = feature.get("names")
    if isinstance(names, Mapping) and all(str(number).isdecimal() for number in names):  # of a card: {'0': O, ...}
        names = [names[number] for number in sorted(names, key=lambda number: int(str(number)))]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    return next((found for one in feature.values() if (found := _class_label(one))), None)


def _names_beside(file: DataFile, column: str) -> list[str] | None:
    """Those of the nearest card that names the column's classes; None if it has several subsets that differ."""
    folder = file.path
    for _ in range(_LEVELS):
        folder = folder.rpartition("/")[0]
        for card in _CARDS:
            found = [names for features in _features(file, f"{folder}/{card}") if (names := names_of(features, column))]
            if found:
                return found[0] if all(names == found[0] for names in found) else None
    return None


def _features(file: DataFile, path: str) -> Iterator[object]:
    """The features of each subset that a card describes."""
    try:
        info: Any = _card(file.filesystem.cat_file(path, start=0, end=_MOST_BYTES).decode(), path)
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(info, Mapping):
        return
    told = info.get("dataset_info", info)
    subsets = told if isinstance(told, list) else [told, *told.values()] if isinstance(told, Mapping) else []
    for subset in subsets:
        if isinstance(subset, Mapping) and "features" in subset:
            yield subset["features"]


def _card(text: str, path: str) -> object:
    """The content of a JSON file, or of the YAML at the head of a README."""
    if path.endswith(".json"):
        return json.loads(text)
    return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
