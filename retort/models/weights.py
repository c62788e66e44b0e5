"""Resolves where a model's weights come from. Does not import torch, since `plan` only needs identities."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from retort.config.base import home_expanded
from retort.errors import ConfigError, StoreUnavailable, first_line
from retort.io.scratch import scratch, sweep

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Weights:
    address: str
    """What transformers loads: a folder or a hub name."""
    identity: str
    """Changes whenever the weights change; part of a student's key."""
    revision: str | None = None
    """The hub revision, where `address` is a hub name."""


class Source(Protocol):
    """Any config that names a model."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def weights(self) -> Literal["pretrained", "random"]: ...


def find_weights(
    config: Source, endpoint_url: str | None = None, field: str = "student.model", *, identify: bool = True
) -> Weights:
    """Resolve `config.model`. Raises ConfigError if nothing is found there, or no safetensors weights.

    `endpoint_url` (expanded) is the S3-compatible server's address, unless it is AWS. `field` is the config field that
    error messages name. Without `identify`, the identity of a folder is empty: its files are not read, which takes some
    seconds for each 5 GB.
    """
    model = config.model
    try:
        if model.startswith("pkg:"):
            return _packaged(model, config)
        if "://" in model:
            found = _from_bucket(model, config, endpoint_url)
            check_inert(Path(found.address))
            return found
        folder = Path(home_expanded(model))
        if folder.exists():
            return Weights(str(folder), _folder_identity(folder, config, identify=identify))
    except (ConfigError, StoreUnavailable) as error:
        raise type(error)(f"{field} = '{model}': {error}") from error.__cause__
    if not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise ConfigError(f"{field} = '{model}': no such folder, and not the name of a model on a hub")
    # A hub name. Only a request can tell whether it exists, and `retort doctor` makes that request.
    return Weights(model, f"hub:{model}@{config.revision}:{config.weights}", config.revision)


def _packaged(model: str, config: Source) -> Weights:
    package, _, inner = model.removeprefix("pkg:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ModuleNotFoundError, ValueError):  # no parent package; no name at all
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package '{package}' is not installed; allowed: pkg:package/folder")
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not folder.is_dir():
        raise ConfigError(f"the package '{package}' has no folder '{inner}'")
    _check_files((file.name for file in folder.iterdir()), config)
    check_inert(folder)
    version = _version(package)
    if version is None:
        return Weights(str(folder), _folder_identity(folder, config, identify=True))
    return Weights(str(folder), f"{model}@{version}:{config.weights}")


@cache
def _version(package: str) -> str | None:
    """The installed version of a package; None if it is importable without being installed. Cached, since the lookup
    reads the metadata of every package."""
    distributions = importlib.metadata.packages_distributions().get(package)
    return importlib.metadata.version(distributions[0]) if distributions else None


def _from_bucket(model: str, config: Source, endpoint_url: str | None) -> Weights:
    if not model.startswith("s3://"):
        raise ConfigError("allowed are a hub name, a folder, s3://bucket/folder and pkg:")
    from retort.io.s3 import filesystem, remote_errors

    system, path = filesystem(endpoint_url), model.removeprefix("s3://").rstrip("/")
    try:
        with remote_errors(model, endpoint_url):
            found = [entry for entry in system.ls(path, detail=True) if entry["type"] == "file"]
    except FileNotFoundError:
        raise ConfigError("the bucket has no such folder") from None
    _check_files((Path(entry["name"]).name for entry in found), config)
    files = sorted((entry["name"], str(entry.get("ETag", "")), entry["size"]) for entry in found)
    identity = hashlib.sha256(repr(files).encode()).hexdigest()
    local = downloads() / identity[:16]
    with remote_errors(model, endpoint_url):
        _download(system, {entry["name"]: entry["size"] for entry in found}, local)
    return Weights(str(local), f"files:{identity}:{config.weights}")


def downloads() -> Path:
    """The folder of weights from buckets."""
    return Path.home() / ".cache" / "retort" / "weights"


def _download(system: Any, sizes: dict[str, int], folder: Path) -> None:
    """Download what `folder` lacks. A new folder appears as a whole, so that neither a killed run nor a concurrent one
    leaves half a model behind; files that a crash has cut are replaced one by one, since others may be reading."""
    lacking = {name: num_bytes for name, num_bytes in sizes.items() if not _has(folder / Path(name).name, num_bytes)}
    if not lacking:
        return
    sweep(folder.parent)  # what killed downloads left
    with scratch("weights", folder.parent) as draft:
        for name, num_bytes in lacking.items():
            _download_file(system, name, num_bytes, draft / Path(name).name)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            for file in draft.iterdir():
                file.replace(folder / file.name)


def _has(file: Path, num_bytes: int) -> bool:
    return file.is_file() and file.stat().st_size == num_bytes


def _download_file(system: Any, name: str, num_bytes: int, target: Path) -> None:
    """A short answer is asked for once more. On disk before it returns: later only the size is looked at."""
    for _ in range(2):
        system.get_file(name, str(target))
        if target.stat().st_size == num_bytes:
            with target.open("rb") as stream:
                os.fsync(stream.fileno())
            return
    raise OSError(f"{target.stat().st_size} bytes of '{name}' came where there are {num_bytes}")


def _folder_identity(folder: Path, config: Source, *, identify: bool) -> str:
    if not folder.is_dir():
        raise ConfigError("is a file; give the folder that holds it")
    _check_files((file.name for file in folder.iterdir()), config)
    check_inert(folder)
    if not identify:
        return ""
    sha = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            stat = file.stat()
            sha.update(file.name.encode() + _digest(file, stat.st_size, stat.st_mtime_ns))
    return f"files:{sha.hexdigest()}:{config.weights}"


@cache
def _digest(file: Path, num_bytes: int, modified_ns: int) -> bytes:
    """SHA-256 of a file, cached while its size and modification time stay the same: every student of a run needs it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _check_files(names: Iterable[str], config: Source) -> None:
    names = set(names)
    if "config.json" not in names:
        raise ConfigError("the folder has no config.json")
    if config.weights == "pretrained" and not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(
            "the folder has no weights (*.safetensors; pickled .bin files are refused); "
            "weights: random takes the architecture alone"
        )


def check_inert(folder: Path) -> None:
    """Raises ConfigError for a model's folder from which transformers would load more than its weights: another model,
    pickled or other files, or code. (Code named by `auto_map` is refused by `trust_remote_code=False`, wherever a model
    is loaded.)"""
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            "the folder holds an adapter (adapter_config.json), which names another model as its base; merge the two"
        )
    settings = _json_object(folder / "config.json")
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(settings.get(name)):
            raise ConfigError(f"its config.json asks for a hub's code ({name}: {settings[name]}), which is never run")
    for index in folder.glob("*.safetensors.index.json"):
        parts = _json_object(index).get("weight_map")
        named = parts.values() if isinstance(parts, dict) else ["nothing"]
        if not all(re.fullmatch(r"[\w.-]+\.safetensors", str(part)) for part in named):
            raise ConfigError(f"its {index.name} names weights that are no *.safetensors of this folder")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"its {file.name} is not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"its {file.name} holds no JSON object")
    return value


def loading_fault(error: Exception) -> str:
    """Why transformers could not load a model, as a clause."""
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own (auto_map), and code that comes with a model is never run"
    if "couldn't connect" in str(error):
        return (
            "the hub cannot be reached, and the model is not in its cache; where there is no hub, name a folder, an "
            "s3:// address or pkg:PACKAGE/FOLDER"
        )
    return first_line(error)
