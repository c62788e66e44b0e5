"""The rules that hold the floors apart, and the reminder that a stage's meaning is part of its key."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from retort.recipes.execute import MAKERS
from retort.records.base import Verb

ROOT = Path(__file__).parents[1]
versions = runpy.run_path(str(Path(__file__).with_name("versions.py")), run_name="versions")


def test_imports_go_one_way() -> None:
    lint = str(Path(sys.executable).with_name("lint-imports"))
    checked = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_every_verb_has_a_maker_and_a_task() -> None:
    from tasks.steps import TASKS

    assert set(Verb.__args__) == set(MAKERS) == set(TASKS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", versions["stage_modules"](), ids=lambda module: module.__name__)
def test_a_stage_has_a_whole_number_for_its_version(module: object) -> None:
    assert type(getattr(module, "VERSION", None)) is int


def test_makers_change_with_their_version() -> None:
    recorded, current = json.loads(versions["RECORD"].read_text()), versions["current"]()
    silent = [
        name
        for name, now in current.items()
        if now != recorded.get(name) and now["VERSION"] == recorded.get(name, {}).get("VERSION")
    ]
    assert not silent, (
        f"{', '.join(silent)}: what makes the artifact has changed and VERSION has not. If an artifact made before "
        "means something else than one made now, bump VERSION. Then run `python tests/versions.py` to record it."
    )
    assert current == recorded, "a VERSION was bumped, or a stage is new: run `python tests/versions.py` to record it"
