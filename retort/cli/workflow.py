"""Starts what is in `flows/`, which is in a layer above this one."""

import os
import sys
from pathlib import Path
from typing import NoReturn


def become(module: str, *arguments: str) -> NoReturn:
    """Run a module of the flows in place of this program. This package may not import it, so it runs in a separate
    interpreter."""
    root = workflow_root()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    # Without -P, a folder flows/ or tasks/ of the user's would be imported instead; Prefect users often have one.
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment)


def workflow_root() -> Path:
    """The folder with `flows/` and `tasks/`: the checkout here, the installed wheel, or this package's checkout."""
    from retort.errors import ConfigError

    here, package = Path.cwd(), Path(__file__).parents[1]
    if (here / "flows" / "launch.py").is_file() and (here / "retort" / "cli" / "__init__.py").is_file():
        return here
    for root in (package / "_workflow", package.parent):
        if (root / "flows" / "launch.py").is_file():
            return root
    raise ConfigError(f"no folder flows/ belongs to {package}: install Retort anew, or run this from its checkout")
