"""Which code this is."""

import subprocess
from pathlib import Path


def git_commit() -> str:
    """The checkout's commit, with `+changes` where the tree differs from it; empty outside of a checkout."""
    root = Path(__file__).parent.parent
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
