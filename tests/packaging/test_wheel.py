"""Retort as people install it: from a wheel, with no checkout in sight."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INSIDE = {"retort": "retort", "flows": "retort/_workflow/flows", "tasks": "retort/_workflow/tasks"}
"""Each folder of the checkout and where the wheel has it."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _checked([sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, ROOT])
    (built,) = folder.glob("*.whl")
    return built


OFFLINE = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`site-packages` of a new environment with the wheel in it; everything else comes from the tests' own.

    A folder that a .pth file names is searched, but not for .pth files: the one that leads to the checkout, which is
    installed there for editing, has no effect.
    """
    environment = tmp_path_factory.mktemp("installed")
    _checked([sys.executable, "-m", "venv", "--without-pip", environment])
    python = environment / "bin" / "python"
    _checked([sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, "--no-compile", wheel])
    (packages,) = environment.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return packages


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A program of that environment, in a folder that has nothing to do with the checkout."""
    leading_elsewhere = ("PYTHONPATH", "VIRTUAL_ENV", "RETORT_HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in leading_elsewhere}

    def start(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [site.parents[2] / "bin" / program, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600
        )

    return start


def _checked(command: list[str | Path]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def test_its_builder_is_the_one_that_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (builder,) = project["build-system"]["requires"]
    assert builder in project["project"]["optional-dependencies"]["dev"]
    assert builder in (ROOT / "requirements.lock").read_text().splitlines()


def test_it_holds_every_file_of_the_three_folders_and_no_other_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {
        f"{inside}/{path.relative_to(ROOT / folder)}"
        for folder, inside in INSIDE.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert packed == there
    assert {"retort/report/templates/mckd.html.j2", "retort/py.typed"} <= packed


def test_the_command_answers(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    version, schema = installed("retort", "--version"), installed("retort", "schema")
    assert re.fullmatch(r"retort \d+\.\d+\.\d+\n", version.stdout), version.stderr
    assert "properties" in json.loads(schema.stdout)


def test_a_run_comes_to_its_end(
    installed: Callable[..., subprocess.CompletedProcess[str]],
    site: Path,
    tiny_slots: dict[str, Any],
    prefect_api: str,
    tmp_path: Path,
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny_slots, "store": {"root": str(tmp_path / "store")}}))
    where = installed("python", "-c", "import retort; print(retort.__file__)")
    assert Path(where.stdout.strip()) == site / "retort" / "__init__.py", where.stderr

    run = installed("retort", "run", config, "--json")
    assert run.returncode == 0, run.stderr
    finished = json.loads(run.stdout.splitlines()[-1])
    assert finished["status"] == "COMPLETED"
    # The checks before the flow have read the data into the store, which was empty; the flow made all the rest.
    made = {stage["name"] for stage in finished["stages"] if stage["status"] == "MADE"}
    ingested = {f"ingest/{role}" for role in ("labeled", "unlabeled", "test")}
    assert {stage["name"] for stage in finished["stages"]} - made == ingested
    assert {"stage1/student-0", "stage1/student-1", "final/student"} <= made
    assert finished["final"]["model"].startswith(str(tmp_path / "store"))
    # Nothing was compiled when it was installed, so what is compiled now has run: here, and in children.
    ran = {path.parents[1].relative_to(site).as_posix() for path in site.rglob("__pycache__/*.pyc")}
    assert {*INSIDE.values(), "retort/steps", "retort/students"} <= ran


def test_folders_of_the_users_own_are_not_taken_for_retorts(
    installed: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for package, module in (("flows", "launch"), ("tasks", "child_process")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / f"{module}.py").write_text(f"raise SystemExit('the {package} of somebody else')")
    run = installed("retort", "run", "absent.yaml")
    assert (run.returncode, "absent.yaml: no such file" in run.stderr) == (2, True), run.stderr
