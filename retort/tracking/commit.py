"""The version of the code."""

import subprocess
from pathlib import Path


def git_commit() -> str:
    """The commit of this checkout, with `+changes` if the tree is dirty.

    Empty if this is not a checkout of Retort, such as a wheel installed inside somebody's own repository.
    """
    root = Path(__file__).parents[2]
    if not (root / "flows" / "launch.py").is_file():
        return ""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip()
