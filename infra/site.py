"""Puts README and what pages link to outside docs/ into the site, at their paths, so that links work as they are."""

from pathlib import Path
from typing import Any

from properdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SHOWN = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/**/*",
    "examples/**/*",
    "retort/recipes/**/*.py",
    "infra/*.py",
)


def on_files(files: Files, config: Any) -> Files:
    found = sorted({path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()})
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files(
        [*theme, *(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in found)]
    )
