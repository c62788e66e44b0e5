"""Where a student's weights come from. Imports no torch: `plan` asks for identities only."""

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from retort.config import EncoderConfig, expand
from retort.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Weights:
    address: str
    """What transformers loads: a folder, or a hub name."""
    identity: str
    """Changes when the weights do; part of a student's key."""
    revision: str | None = None
    """Of a hub name."""


def find_weights(config: EncoderConfig) -> Weights:
    """Resolve `student.model`. Raises ConfigError if nothing is there, or no safetensors weights are."""
    model = config.model
    if model.startswith("pkg:"):
        return _packaged(model, config)
    if "://" in model:
        return _from_bucket(model, config)
    if Path(model).is_dir():
        return Weights(model, _folder_identity(Path(model), config))
    if model.startswith((".", "/")) or model.count("/") > 1:
        raise ConfigError(f"student.model = '{model}': no such folder")
    # A hub name; whether it can be had is known only by asking, which `retort doctor` does.
    return Weights(model, f"hub:{model}@{config.revision}:{config.weights}", config.revision)


def _packaged(model: str, config: EncoderConfig) -> Weights:
    package, _, inner = model.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"student.model = '{model}': the package '{package}' is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not folder.is_dir():
        raise ConfigError(f"student.model = '{model}': the package '{package}' has no folder '{inner}'")
    _check_files(folder, model, config)
    names = importlib.metadata.packages_distributions().get(package, [package])
    return Weights(str(folder), f"{model}@{importlib.metadata.version(names[0])}:{config.weights}")


def _from_bucket(model: str, config: EncoderConfig) -> Weights:
    import fsspec

    fs, path = fsspec.core.url_to_fs(expand(model))
    try:
        files = sorted((f["name"], str(f.get("ETag", "")), f["size"]) for f in fs.ls(path, detail=True))
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"student.model = '{model}': {error}") from None
    identity = hashlib.sha256(repr(files).encode()).hexdigest()
    local = Path.home() / ".cache" / "retort" / "weights" / identity[:16]
    if not local.exists():
        partial = local.with_suffix(".partial")
        fs.get(path.rstrip("/") + "/", str(partial) + "/", recursive=True)
        partial.rename(local)
    _check_files(local, model, config)
    return Weights(str(local), f"files:{identity}:{config.weights}")


def _folder_identity(folder: Path, config: EncoderConfig) -> str:
    _check_files(folder, str(folder), config)
    sha = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with file.open("rb") as stream:
                sha.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return f"files:{sha.hexdigest()}:{config.weights}"


def _check_files(folder: Path, model: str, config: EncoderConfig) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"student.model = '{model}': the folder has no config.json")
    if config.weights == "pretrained" and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"student.model = '{model}': the folder has no weights (*.safetensors; pickled .bin files are refused); "
            "student.weights: random trains from the architecture alone"
        )
