"""Distills a large language model into small, cheap students.

For scripts, the names of `__all__`; whatever else lies in here may change with any release.
"""

import importlib
from typing import TYPE_CHECKING

__all__ = ["RetortError", "__version__", "load_config"]

__version__: str

if TYPE_CHECKING:
    from retort.errors import RetortError
    from retort.recipes import load_config
else:  # hidden from type checkers, which would believe that every name is there

    def __getattr__(name: str) -> object:
        """Imported when first asked for: `import retort` stands at the start of every command and takes no time."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = _version() if name == "__version__" else _imported(*_PLACES[name])
        globals()[name] = value
        return value


_PLACES = {"RetortError": ("retort.errors", "RetortError"), "load_config": ("retort.recipes", "load_config")}


def __dir__() -> list[str]:
    return sorted(__all__)


def _imported(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


def _version() -> str:
    """As installed; in a checkout that is not installed, what its pyproject.toml says."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("retort")
    except PackageNotFoundError:
        return _version_of_checkout()


def _version_of_checkout() -> str:
    import tomllib
    from pathlib import Path

    try:
        project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
    except (OSError, ValueError, KeyError):  # copied somewhere without either
        return "unknown"
