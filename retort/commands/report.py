"""`retort report`: copies the report of a config's last run out of the store."""

import shutil
from pathlib import Path

from retort.artifacts.reports import PAGES
from retort.config import RecipeConfig
from retort.errors import ConfigError, RetortError
from retort.store import Store


def copy_report(store: Store, config: RecipeConfig, folder: Path) -> list[Path]:
    """Copy the pages into `folder` and return their paths. Raises RetortError if no run has finished yet, and
    ConfigError if `folder` cannot be written."""
    manifest = store.latest(config.name, "report")
    if manifest is None:
        raise RetortError(f"'{config.name}' has no report in {config.store.root} yet: retort run makes one")
    source = store.fetch(store.ref(manifest))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(source / name, folder / name)) for name in PAGES]
    except OSError as error:
        raise ConfigError(f"--out '{folder}': cannot be written as a folder ({error.strerror})") from error
